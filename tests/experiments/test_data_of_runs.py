"""What a run says of its data, and what it refuses to train on before anything is written."""

import numpy as np
import pytest

from flatsparse.cli import main
from flatsparse.common.errors import InputError
from flatsparse.common.json_files import read_json
from flatsparse.experiments.compare import Comparison, compare
from flatsparse.experiments.data import arrays, sources
from flatsparse.experiments.grid.store import key
from flatsparse.experiments.run import loop
from flatsparse.experiments.run.build import build, describe
from flatsparse.experiments.run.config import RunConfig, Setting, change
from flatsparse.experiments.run.evaluation import evaluate, worst_case_increase
from flatsparse.experiments.run.load import load_run
from flatsparse.experiments.run.resolve import resolve
from tests.experiments.images import write_parts

SMALL = RunConfig.of(train_size=32, validation_size=8, batch_size=16, epochs=1)


def write_arrays(folder, side=8, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(seed).integers(0, 256, (60, side, side, 1), dtype=np.uint8)
    for part in ("train", "test"):
        np.savez(folder / f"{part}.npz", images=images, labels=np.arange(60) % 3)
    sources._folder.cache_clear()  # a process reads a folder once
    return str(folder)


def small(**changes):
    return change(SMALL, **{"model": "digitnet", **changes})


def test_a_run_says_which_data_it_is_of_and_goes_on_with_no_other(tmp_path):
    run = small(data=write_arrays(tmp_path / "mine"))
    result = loop.train(run, tmp_path / "run")
    told = result.data_set
    assert told == read_json(tmp_path / "run" / "config.json")["data_set"]
    assert told == {**sources.load(run.dataset.data).identity, "name": "mine", "source": str(tmp_path / "mine")}
    assert loop.train(run, tmp_path / "run", resume=True) == result
    assert load_run(tmp_path / "run").run.dataset.data == run.dataset.data
    write_arrays(tmp_path / "mine", seed=1)
    for again in (lambda: loop.train(run, tmp_path / "run", resume=True), lambda: load_run(tmp_path / "run")):
        with pytest.raises(InputError, match="is of other data: 'mine' from") as caught:
            again()
        assert "\n" not in str(caught.value)


def test_a_comparison_says_it_too(tmp_path, capsys):
    data = write_arrays(tmp_path / "mine")
    setting = Setting.of(data=data, model="digitnet", epochs=1, batch_size=32)
    told = Comparison(setting, seeds=1, sharpness=("none", "s2sam"), jobs=1)
    compare(told, tmp_path / "out")
    assert "mine: 54 training, 6 validation and 60 test images of 3 classes" in capsys.readouterr().err
    assert read_json(tmp_path / "out" / "compare.json")["data_set"] == sources.load(data).identity
    write_arrays(tmp_path / "mine", seed=1)
    with pytest.raises(InputError, match="is of other data"):
        compare(told, tmp_path / "out", resume=True)


def test_what_was_read_is_told_where_a_run_begins_with_what_to_know_of_it(tmp_path):
    place = write_parts(tmp_path / "pets", {"train": ("cat", "dog", "emu"), "test": ("cat", "dog")})
    text = describe(build(resolve(small(data=place, train_size=None, validation_size=2, batch_size=2))))
    assert "7 training, 2 validation and 6 test images of 3 classes" in text
    assert "\nwarning: 'pets (test)' has no images of class 'emu'" in text


def test_a_run_of_a_folder_goes_where_runs_go(tmp_path, monkeypatch, capsys):
    write_arrays(tmp_path / "my data")
    monkeypatch.chdir(tmp_path)
    command = ["train", "--data", "../" + tmp_path.name + "/my data", "--model", "digitnet", "--epochs", "1"]
    main([*command, "--batch-size", "32"])
    assert [folder.name for folder in (tmp_path / "runs").iterdir()] == ["my_data-digitnet-rigl0.9-none-seed0"]


@pytest.mark.parametrize("place", ["/", "~nobody-at-all/x", "train.npz"])
def test_data_that_is_no_folder_ends_with_status_2_and_writes_nothing(tmp_path, monkeypatch, capsys, place):
    (tmp_path / "train.npz").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--data", place])
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


# -- batches that a network cannot take -------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"train_size": 9, "batch_size": 8}, {"batch_size": 1}])
@pytest.mark.parametrize("model", ["resnet18", "mobilenet_v2"])
def test_a_batch_of_one_that_batch_norm_cannot_take_is_refused_before_anything(tmp_path, model, changes):
    with pytest.raises(InputError, match=f"the smallest batch has 1 image, of which batch norm in {model}") as caught:
        loop.train(small(model=model, **changes), tmp_path / "run")
    assert "--batch-size" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_batch_of_one_trains_where_batch_norm_has_pixels_to_see(tmp_path):
    assert loop.train(small(train_size=9, batch_size=8), tmp_path / "run").steps == 2


def test_images_that_are_too_small_for_a_network_are_refused(tmp_path):
    with pytest.raises(InputError, match="--model vgg19 cannot take images of 8x8x1") as caught:
        loop.train(small(model="vgg19"), tmp_path / "run")
    assert "\n" not in str(caught.value)


# -- how many images are computed at once -----------------------------------------------------------------------------


def sizes_seen(run):
    """The most images that went through the net at once, in evaluation and in the ball."""
    seen = {"evaluate": [], "ball": []}
    parts = build(resolve(run))
    parts.model.register_forward_pre_hook(lambda net, inputs: seen[kind].append(len(inputs[0])))
    kind = "evaluate"
    evaluate(parts, parts.task.splits.test)
    kind = "ball"
    worst_case_increase(parts)
    return {name: max(sizes) for name, sizes in seen.items()}


def test_evaluations_take_as_many_images_at_once_as_their_size_allows(tmp_path, monkeypatch):
    run = small(data=write_arrays(tmp_path / "mine"), train_size=None, validation_size=0)
    assert sizes_seen(run) == {"evaluate": 60, "ball": 60}
    assert sizes_seen(change(run, eval_batch_size=8)) == {"evaluate": 8, "ball": 2}
    monkeypatch.setattr(arrays, "at_once", lambda images, most: most // 100)  # as for large ones
    assert sizes_seen(run) == {"evaluate": 10, "ball": 2}


def test_how_many_are_computed_at_once_keeps_a_run_that_leaves_it_open(tmp_path):
    assert key(RunConfig()) == key(RunConfig.of(eval_batch_size=None)) != key(RunConfig.of(eval_batch_size=7))
    with pytest.raises(InputError, match="--eval-batch-size 0"):
        resolve(RunConfig.of(eval_batch_size=0))
