"""Each package is told of a run that was stopped and resumed, as one: TensorBoard's files are read back, others are stood for.

The slow tests take the packages themselves, where they are installed, without a network.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from flatsparse.common.json_files import read_json
from flatsparse.experiments.run import loop
from flatsparse.experiments.tracking.tracking import RECORD, Tracking
from tests.experiments.watchers import KillAfter, Killed

from .runs import SMALL, STEPS


def stopped_and_resumed(out, name, epoch=2):
    with pytest.raises(Killed):
        loop.train(SMALL, out, tracking=Tracking.named([name], "mine"), watcher=KillAfter(epoch))
    return loop.train(SMALL, out, tracking=Tracking.named([name], "mine"), resume=True)


# -- TensorBoard ------------------------------------------------------------------------------------------------------


def scalars(folder):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulators.EventAccumulator(str(folder))
    events.Reload()
    return events, {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_has_every_epoch_once_and_the_result(tmp_path):
    result = stopped_and_resumed(tmp_path, "tensorboard")
    events, values = scalars(tmp_path / "tensorboard")
    records = loop.read_metrics(tmp_path, result)
    for name in ("train_loss", "validation_accuracy", "lr", "images_per_second"):
        assert values[name] == [(r.step, pytest.approx(getattr(r, name), rel=1e-6)) for r in records]
    assert values["result/test_accuracy"] == [(STEPS[-1], pytest.approx(result.test_accuracy, rel=1e-6))]
    assert values["result/flops/train"] == [(STEPS[-1], pytest.approx(result.flops.train, rel=1e-6))]
    (text,) = events.Tensors("settings/text_summary")
    shown = text.tensor_proto.string_val[0].decode()
    assert json.loads(shown.removeprefix("```json").removesuffix("```"))["sharpness"] == "s2sam"
    assert read_json(tmp_path / RECORD)["complete"] == ["TensorBoard"]


def test_what_a_killed_process_logged_is_in_the_file_and_later_steps_are_replaced(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")

    def killed(*_):
        raise Killed

    from flatsparse.experiments.tracking.tensorboard import TensorBoard

    monkeypatch.setattr(TensorBoard, "finish", killed)  # a process that is killed closes no file
    with pytest.raises(Killed):
        loop.train(SMALL, tmp_path, tracking=Tracking.named(["tensorboard"]), watcher=KillAfter(1))
    monkeypatch.undo()
    _, values = scalars(tmp_path / "tensorboard")
    assert [step for step, _ in values["train_loss"]] == STEPS[:1]
    tracker = TensorBoard()
    run = SimpleNamespace(folder=tmp_path, step=STEPS[0], settings={})
    tracker.start(run)
    tracker.log({"train_loss": 7.0}, STEPS[1])
    tracker.start(run)  # again from the first epoch
    tracker.log({"train_loss": 8.0}, STEPS[1])
    _, values = scalars(tmp_path / "tensorboard")
    assert values["train_loss"][1:] == [(STEPS[1], 8.0)]


# -- Packages that are stood for --------------------------------------------------------------------------------------


class Stood:
    """A run of a package that remembers what it is told."""

    def __init__(self):
        self.begun, self.logged, self.ended, self.summary, self.step = [], [], [], {}, 0

    def log(self, values, step=None):
        self.logged.append((step, values))
        self.step = step

    def finish(self, exit_code=None):
        self.ended.append(exit_code)


def wandb():
    """The part of wandb 0.31 that is called."""
    run = Stood()

    def init(*, project=None, dir=None, id=None, name=None, config=None, group=None, resume=None, settings=None):
        run.begun.append({"id": id, "name": name, "group": group, "project": project, "resume": resume, "dir": dir})
        run.settings, run.config = settings, config
        return run

    return SimpleNamespace(init=init, Settings=lambda *, console: {"console": console}), run


def trackio():
    """The part of trackio 0.43 that is called."""
    run = Stood()

    def init(project, name=None, group=None, *, config=None, resume="never", embed=True):
        run.begun.append({"id": name, "name": name, "group": group, "project": project, "resume": resume})
        run.config = config
        return run

    return SimpleNamespace(init=init, log=run.log, finish=run.finish), run


@pytest.mark.parametrize(("name", "package"), [("wandb", wandb), ("trackio", trackio)])
def test_a_package_is_told_of_one_run(tmp_path, monkeypatch, name, package):
    module, run = package()
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    result = stopped_and_resumed(tmp_path / "run", name)
    first, second = run.begun
    assert first == second
    identifier = read_json(tmp_path / "run" / RECORD)["identifier"]
    assert first["id"] in (identifier, f"run-{identifier}")
    assert (first["name"][:3], first["group"], first["project"], first["resume"]) == (
        "run",
        "mine",
        "flatsparse",
        "allow",
    )
    assert run.config["sharpness"] == "s2sam"
    epochs = [step for step, values in run.logged if "train_loss" in values]
    assert epochs == STEPS
    assert all("step" not in values for _, values in run.logged)  # which trackio keeps for itself
    ending = run.summary if name == "wandb" else run.logged[-1][1]
    assert ending["result/test_accuracy"] == result.test_accuracy
    assert run.ended == ([1, 0] if name == "wandb" else [None, None])


def test_wandb_is_not_told_again_of_what_it_has(tmp_path, monkeypatch):
    module, run = wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(Tracking, "__exit__", lambda *_: None)  # as if the process were killed
    stopped_and_resumed(tmp_path, "wandb")
    assert [step for step, _ in run.logged] == [*STEPS[:2], *STEPS[1:]]


def test_wandb_has_the_project_of_its_variable(tmp_path, monkeypatch):
    module, run = wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setenv("WANDB_PROJECT", "thesis")
    loop.train(SMALL, tmp_path, tracking=Tracking.named(["wandb"]))
    assert run.begun[0]["project"] == "thesis"
    assert run.begun[0]["dir"] == str(tmp_path)
    assert run.settings == {"console": "off"}


# -- The packages themselves ------------------------------------------------------------------------------------------

PROGRAM = """
import sys
from pathlib import Path
from tests.experiments.tracking.test_packages import stopped_and_resumed
print(stopped_and_resumed(Path(sys.argv[1]), sys.argv[2]).test_accuracy)
"""


def in_a_process(tmp_path, name, **variables):
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)]), **variables}
    command = [sys.executable, "-W", "error:.*no longer tracks", "-c", PROGRAM, str(tmp_path / "run"), name]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "no longer tracks" not in done.stderr
    return float(next(line for line in done.stdout.splitlines() if line.replace(".", "").isdigit()))


@pytest.mark.slow
def test_wandb_itself_keeps_both_parts_of_the_run(tmp_path):
    pytest.importorskip("wandb")
    in_a_process(tmp_path, "wandb", WANDB_MODE="offline")
    identifier = read_json(tmp_path / "run" / RECORD)["identifier"]
    parts = sorted((tmp_path / "run" / "wandb").glob(f"offline-run-*/run-{identifier}.wandb"))
    assert len(parts) == 2
    assert b"validation_accuracy" in parts[0].read_bytes()
    assert b"result/test_accuracy" in parts[1].read_bytes()


@pytest.mark.slow
def test_trackio_itself_has_every_epoch_and_the_result(tmp_path):
    pytest.importorskip("trackio")
    accuracy = in_a_process(tmp_path, "trackio", TRACKIO_DIR=str(tmp_path / "kept"))
    code = "import json; from trackio import Api, SQLiteStorage as kept; run, = Api().runs('flatsparse')"
    code += "; print(json.dumps(kept.get_logs('flatsparse', run.name), default=str))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TRACKIO_DIR": str(tmp_path / "kept")},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    lines = json.loads(done.stdout.splitlines()[-1])
    assert [line["step"] for line in lines if "train_loss" in line] == STEPS
    assert [line["result/test_accuracy"] for line in lines if "result/test_accuracy" in line] == [accuracy]
