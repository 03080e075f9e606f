"""Tasks of a user's own: runs of every kind, resumed and read by any number of workers, and bad input."""

import shutil

import pytest
import torch

from flatsparse.common.errors import InputError
from flatsparse.common.json_files import read_json
from flatsparse.common.tensor_files import load_tensors
from flatsparse.experiments.run import loop
from flatsparse.experiments.run.config import RunConfig
from flatsparse.experiments.run.load import load_run
from flatsparse.experiments.run.watcher import Silent

from .own_tasks import KINDS, NOISY, SEVERAL, STREAM, written

QUICK = {"batch_size": 8, "epochs": 2, "lr": 0.02, "sparsity": 0.5}


def of(spec, **settings):
    return RunConfig.of(task=spec, **{**QUICK, **settings})


def weights(folder):
    return load_tensors(folder / "model.safetensors")[0]


def assert_same(one, other):
    """Two runs are the same bit for bit, but for their times."""
    ours, theirs = weights(one), weights(other)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    results = [read_json(folder / "result.json") for folder in (one, other)]
    for result in results:
        for name in ("seconds", "images_per_second", "sha256"):
            result.pop(name, None)
    assert results[0] == results[1]


class Killed(BaseException):
    """Stands for a SIGKILL."""


class KillAt(Silent):
    def __init__(self, step):
        self.step = step

    def stepped(self, step, steps, images_per_second):
        if step == self.step:
            raise Killed


# -- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_every_kind_of_task_can_be_loaded_and_measured_again(tmp_path, kind):
    result = loop.train(of(written(tmp_path, KINDS[kind]), sharpness="s2sam"), tmp_path / "run")
    assert result.sparsity.prunable == pytest.approx(0.5, abs=0.02)
    assert result.test_accuracy is None
    assert result.value == next(iter(result.scores.values()))
    finished = load_run(tmp_path / "run")
    test = finished.task.splits.test
    with torch.no_grad():
        again = finished.task.evaluate(finished.model, test.batches(16), len(test))
    assert again.scores == pytest.approx(result.scores, rel=1e-5)
    assert again.loss == pytest.approx(result.test_loss, rel=1e-5)


def test_a_result_says_whose_scores_it_has(tmp_path):
    spec = written(tmp_path)
    saved = loop.train(of(spec), tmp_path / "run").to_json()
    assert saved["task"] == saved["data"] == spec
    assert (saved["model"], saved["better"]) == ("Sequential", "lower")
    assert (
        list(saved["scores"]) == list(saved["train_scores"]) == list(saved["validation_scores"]) == ["error", "worst"]
    )
    assert saved["generalization_gap"] == saved["train_scores"]["error"] - saved["scores"]["error"]
    assert saved["steps_to"] == {}
    assert [saved[name] for name in ("test_accuracy", "train_accuracy", "validation_accuracy", "macro")] == [None] * 4
    assert read_json(tmp_path / "run" / "config.json")["data_set"]["source"] == str(tmp_path / "mine.py")


def test_validation_samples_are_held_out_of_training_ones_unless_there_are_some(tmp_path):
    def sizes(text, **settings):
        out = tmp_path / "run"
        shutil.rmtree(out, ignore_errors=True)
        loop.train(of(written(tmp_path, text), epochs=1, **settings), out)
        splits = load_run(out).task.splits
        return [len(split) for split in (splits.train, splits.validation, splits.test)]

    assert sizes(NOISY) == [43, 5, 16]  # a tenth
    assert sizes(NOISY, train_size=20, validation_size=10) == [20, 10, 16]
    assert sizes(SEVERAL) == [48, 12, 16]
    assert sizes(SEVERAL, validation_size=6, train_size=40) == [40, 6, 16]
    assert sizes(STREAM) == [40, 0, 16]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_run_killed_within_an_epoch_ends_as_if_undisturbed_with_any_number_of_workers(tmp_path, workers):
    """With dropout, and samples that draw from all three generators."""
    spec = written(tmp_path)
    loop.train(of(spec, sharpness="s2sam", epochs=3), tmp_path / "whole")
    run = of(spec, sharpness="s2sam", epochs=3, workers=workers)
    with pytest.raises(Killed):
        loop.train(run, tmp_path / "killed", watcher=KillAt(9))  # of 6 steps an epoch
    loop.train(run, tmp_path / "killed", resume=True)
    assert_same(tmp_path / "killed", tmp_path / "whole")


def test_a_stream_resumes_at_its_epoch(tmp_path):
    run = of(written(tmp_path, STREAM), epochs=3)
    loop.train(run, tmp_path / "whole")
    with pytest.raises(Killed):
        loop.train(run, tmp_path / "killed", watcher=KillAt(12))
    loop.train(run, tmp_path / "killed", resume=True)
    assert_same(tmp_path / "killed", tmp_path / "whole")


def test_a_finished_run_is_not_of_other_data(tmp_path):
    spec = written(tmp_path)
    loop.train(of(spec), tmp_path / "run")
    written(tmp_path, NOISY, "Noisy(48, 0, True)", "Noisy(48, 9, True)")
    with pytest.raises(InputError, match="is of other data"):
        loop.train(of(spec), tmp_path / "run", resume=True)


# -- the closing measurements -----------------------------------------------------------------------------------------


class StopMeasuring(Silent):
    def __init__(self):
        self.shown = []

    def measured(self, samples, whole):
        self.shown.append((samples, whole))
        if len(self.shown) == 3:
            raise KeyboardInterrupt


def test_what_is_trained_is_safe_before_it_is_measured_and_is_not_trained_again(tmp_path):
    run, out, watcher = of(written(tmp_path)), tmp_path / "run", StopMeasuring()
    with pytest.raises(KeyboardInterrupt):
        loop.train(run, out, watcher=watcher)
    assert {"model.safetensors", "masks.safetensors", "checkpoint.pt"} <= {file.name for file in out.iterdir()}
    assert not (out / "result.json").exists()
    trained = weights(out)
    loop.train(run, out, resume=True, watcher=KillAt(1))  # it would be killed by another step
    assert all(torch.equal(value, trained[name]) for name, value in weights(out).items())
    loop.train(run, tmp_path / "whole")
    assert_same(out, tmp_path / "whole")


@pytest.mark.parametrize(
    "settings", [{"task": None, "train_size": 64, "validation_size": 50}, {}], ids=["digits", "task"]
)
def test_the_closing_measurements_show_their_progress(tmp_path, settings):
    shown = []

    class Watch(Silent):
        def measured(self, samples, whole):
            shown.append((samples, whole))

    spec = settings.get("task", written(tmp_path))
    loop.train(RunConfig.of(**{**QUICK, "task": spec, **settings}), tmp_path / "run", watcher=Watch())
    assert len(shown) > 3
    assert len({whole for _, whole in shown}) == 1
    done = [samples for samples, _ in shown]
    assert done == sorted(set(done))
    assert shown[-1][0] == shown[-1][1]


# -- bad input --------------------------------------------------------------------------------------------------------


def told(run, out, **how):
    with pytest.raises(InputError) as caught:
        loop.train(run, out, **how)
    assert "\n" not in str(caught.value)
    return str(caught.value)


BAD = {
    "a loss of several numbers": (
        ("return F.mse_loss(model(inputs), wanted)", "return (model(inputs) - wanted) ** 2"),
        "the loss of .* gives a tensor of shape \\(3,\\): return the mean over the batch, a scalar",
    ),
    "a loss without a gradient": (
        ("return F.mse_loss(model(inputs), wanted)", "return F.mse_loss(model(inputs), wanted).detach()"),
        "gives a tensor of shape \\(\\) without a gradient",
    ),
    "a loss that is a number": (
        ("return F.mse_loss(model(inputs), wanted)", "return float(F.mse_loss(model(inputs), wanted))"),
        "the loss of .* gives float: return the mean over the batch, a scalar",
    ),
    "a batch that does not fit": (
        ("nn.Linear(6, 16)", "nn.Linear(7, 16)"),
        "mine.py' does not run: RuntimeError: mat1 and mat2 shapes .* \\(line \\d+\\)",
    ),
    "no score": (
        ('return {"error": float(errors.mean()), "worst": float(errors.max())}', "return {}"),
        "numbers by name",
    ),
    "a score without a name": (
        ('return {"error": float(errors.mean()), "worst": float(errors.max())}', "return 3.0"),
        "the score of .* gave 3.0: return numbers by name",
    ),
    "a score that is text": (
        ('"error": float(errors.mean())', '"error": "good"'),
        "score 'error' of .* is 'good': return a number",
    ),
    "a score of several numbers": (
        ('"error": float(errors.mean())', '"error": errors'),
        "score 'error' of .* return a number",
    ),
    "a score that reads twice": (
        (
            "    errors = torch.cat([",
            "    first = [len(wanted) for _, wanted in batches]\n    errors = torch.cat([",
        ),
        r"the score of '.*mine.py:task' reads its batches twice: take all that it needs in one loop",
    ),
    "a score that raises": (
        ("errors = torch", "errors = torch.cut([]) or torch"),
        "mine.py' does not run: AttributeError: .* \\(line \\d+\\)",
    ),
    "no samples": (("Noisy(48, 0, True)", "Noisy(0, 0, True)"), "\\(train\\)' holds no samples: add some"),
    "no length": (
        ("Noisy(16, 1, False)", "iter([])"),
        "\\(test\\)' is a list_iterator without a length: give it __len__",
    ),
    "no data set": (
        ("Noisy(16, 1, False)", "type('Heap', (), {'__len__': lambda self: 3})()"),
        "is a Heap: give a data set with __getitem__ or __iter__",
    ),
    "a file that raises": (
        ("def model", "raise OSError('no disk')\ndef model"),
        "mine.py' does not run: OSError: no disk",
    ),
    "a file that ends": (("def model", "exit(3)\ndef model"), "mine.py' does not run: SystemExit: 3"),
    "a file that is no Python": (("def model", "def def model"), "mine.py' does not run: SyntaxError"),
    "a task that raises": (
        ("    return Task(", "    open('absent')\n    return Task("),
        "mine.py' does not run: FileNotFoundError: .* \\(line \\d+\\)",
    ),
    "no task": (("return Task(", "return dict("), "mine.py' does not run: TypeError: dict expected"),
    "another thing than a task": (
        ("    return Task(", "    return 3\n    return Task("),
        "gave a int: return a flatsparse.Task",
    ),
    "no module": (("    return nn.Sequential(", "    return 3, ("), "is a tuple: return a torch.nn.Module"),
    "another direction": (('better="lower"', 'better="less"'), "better of .* is 'less': give 'higher' or 'lower'"),
    "no number of workers": (('better="lower"', "workers=-1"), "workers of .* is -1: give a whole number"),
    "no function": (('better="lower"', "collate=3"), "collate of .* is a int: give a function"),
    "a sample that raises": (
        ("        inputs = self.inputs[index]\n", "        inputs = self.inputs[index] if index != 20 else 1 / 0\n"),
        "'.*mine.py:task \\(train\\)' cannot be read: ZeroDivisionError",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_task_is_told_in_a_line(tmp_path, what):
    changes, message = BAD[what]
    spec = written(tmp_path, NOISY, *changes)
    with pytest.raises(InputError, match=message) as caught:
        loop.train(of(spec), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_raises_is_told_by_workers_too(tmp_path, workers):
    changes, message = BAD["a sample that raises"]
    with pytest.raises(InputError, match=message):
        loop.train(of(written(tmp_path, NOISY, *changes), workers=workers), tmp_path / "run")


def test_a_stream_shorter_than_its_length_is_told(tmp_path):
    spec = written(tmp_path, STREAM, "numbers(self.count, 6", "numbers(self.count - 3, 6")
    assert "ended after 37 of the 40 samples that its length says: correct one" in told(of(spec), tmp_path / "run")


def test_a_worker_that_is_killed_leaves_a_checkpoint_to_resume(tmp_path):
    spec = written(tmp_path, STREAM)
    loop.train(of(spec, epochs=3), tmp_path / "whole")
    killing = (
        "yield inputs",
        "os.kill(os.getpid(), 9) if self.epoch == 1 and torch.utils.data.get_worker_info() else 0; yield inputs",
    )
    written(tmp_path, STREAM, "import random", "import os, random", *killing)
    assert "a worker process that reads" in told(of(spec, epochs=3, workers=1), tmp_path / "run")
    loop.train(of(spec, epochs=3), tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_a_task_that_fails_in_the_middle_of_training_is_mended_and_resumed(tmp_path):
    failing = ("inputs, wanted = batch", "inputs, wanted = batch; CALLS.append(1); assert len(CALLS) < 12, 'lost'")
    spec = written(tmp_path, NOISY, *failing, "def model", "CALLS = []\ndef model")
    assert "mine.py' does not run: AssertionError: lost (line " in told(of(spec), tmp_path / "run")
    assert (tmp_path / "run" / "checkpoint.pt").is_file()
    written(tmp_path)
    loop.train(of(spec), tmp_path / "run", resume=True)
    loop.train(of(spec), tmp_path / "whole")
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_a_score_that_is_not_finite_at_the_end_costs_no_training(tmp_path):
    spec = written(tmp_path, NOISY, '"worst": float(errors.max())', '"worst": float("nan")')
    assert "score 'worst' of" in told(of(spec, validate_every=2), tmp_path / "run")
    written(tmp_path)
    loop.train(of(spec, validate_every=2), tmp_path / "run", resume=True)
    loop.train(of(spec, validate_every=2), tmp_path / "whole")
    assert_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("settings", [{"label_noise": 0.1}, {"label_smoothing": 0.1}])
def test_labels_of_a_task_are_its_own(tmp_path, settings):
    flag = f"--{next(iter(settings)).replace('_', '-')}"
    assert f"{flag} is for images with a class each" in told(of(written(tmp_path), **settings), tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "resnet20"}, "--model resnet20 has no use beside --task"),
        ({"data": "cifar10"}, "--data cifar10 has no use"),
    ],
)
def test_a_task_has_model_and_data_of_its_own(tmp_path, settings, message):
    assert message in told(of(written(tmp_path), **settings), tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine.py:tusk", "has no function 'tusk' (nearest: task"),
        ("mine.py", "is no function of a file: give path/to/file.py:function"),
        ("other.py:task", "no file"),
        ("mine.txt:task", "is no function of a file"),
    ],
)
def test_a_task_that_is_not_there(tmp_path, name, message):
    written(tmp_path)
    assert message in told(of(f"{tmp_path}/{name}"), tmp_path / "run")


def test_samples_cannot_be_taken_out_of_a_stream(tmp_path):
    spec = written(tmp_path, STREAM)
    for settings in ({"train_size": 10}, {"validation_size": 3}):
        assert "reads its training samples as a stream" in told(of(spec, **settings), tmp_path / "run")


def test_more_samples_than_there_are(tmp_path):
    assert "cannot take 48 training and 10 validation samples from the 48 of" in told(
        of(written(tmp_path), train_size=48, validation_size=10), tmp_path / "run"
    )
