"""Trackers are told what a run's folder holds, continue the same run, and neither change nor end one."""

import json
import sys
import warnings
from importlib.machinery import ModuleSpec

import pytest

from flatsparse.cli import main
from flatsparse.common.errors import InputError
from flatsparse.common.json_files import read_json
from flatsparse.experiments.run import loop
from flatsparse.experiments.run.config import change
from flatsparse.experiments.tracking import tracking
from flatsparse.experiments.tracking.tracker import numbers
from flatsparse.experiments.tracking.tracking import RECORD, TRACKERS, Tracking, check_trackers
from tests.cli.test_cli import QUICK, fails
from tests.experiments.watchers import KillAfter, Killed

from .runs import SMALL, STEPS, Remembered


def train(out, *trackers, **options):
    return loop.train(SMALL, out, tracking=Tracking(trackers), **options)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "run"
    loop.train(SMALL, out)
    return out


def test_a_tracker_is_told_what_the_folder_holds_and_changes_no_bit(plain, tmp_path):
    tracker, out = Remembered(), tmp_path / "run"
    result = train(out, tracker)
    assert tracker.calls == ["start", "log", "log", "log", "finish"]
    assert json.loads(json.dumps(tracker.run.settings)) == read_json(out / "config.json")["settings"]
    assert (tracker.run.folder, tracker.run.step, tracker.run.group) == (out, 0, None)
    lines = [numbers(line.to_json()) for line in loop.read_metrics(out, result)]
    assert [{**call[2], "step": call[1]} for call in tracker.told if call[0] == "log"] == lines
    assert {"train_loss", "validation_loss", "lr", "sparsity"} < set(lines[0])
    assert tracker.steps == STEPS
    last = tracker.told[-1][1]
    assert last == numbers(result.to_json())
    assert {"test_accuracy", "flops/train", "ball/increase"} < set(last)
    for name in ("config.json", "model.safetensors", "masks.safetensors"):
        assert (out / name).read_bytes() == (plain / name).read_bytes()


def test_a_run_that_is_resumed_is_the_same_one(tmp_path):
    first, second, new = Remembered(), Remembered(), Other()
    with pytest.raises(Killed):
        train(tmp_path, first, watcher=KillAfter(2))
    assert first.told[-1] == ("finish", None)
    train(tmp_path, second, new, resume=True)
    assert first.run.identifier == second.run.identifier == new.run.identifier
    assert (first.steps, second.steps) == (STEPS[:2], STEPS[2:])
    assert (second.run.step, new.run.step) == (STEPS[1], 0)
    assert new.steps == STEPS  # it did not know the epochs before
    recorded = {"identifier": new.run.identifier, "complete": ["Other", "Remembered"], "step": STEPS[-1]}
    assert read_json(tmp_path / RECORD) == recorded


def test_epochs_that_were_trained_without_any_tracker_are_logged_when_it_is_back(tmp_path):
    first, second = Remembered(), Remembered()
    for trackers, epoch in (([first], 1), ([], 2)):
        with pytest.raises(Killed):
            train(tmp_path, *trackers, watcher=KillAfter(epoch), resume=True)
    train(tmp_path, second, resume=True)
    assert (first.steps, second.run.step, second.steps) == (STEPS[:1], STEPS[0], STEPS[1:])


@pytest.mark.parametrize("lost", ["by a kill", "by a tracker that failed", "by a part without it"])
def test_what_may_be_lost_is_logged_again_when_the_run_is_resumed(tmp_path, monkeypatch, lost):
    first = Remembered(raises={"log"} if lost == "by a tracker that failed" else ())
    with monkeypatch.context() as changed, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if lost == "by a kill":
            changed.setattr(Tracking, "__exit__", lambda *_: None)
        with pytest.raises(Killed):
            train(tmp_path, first, watcher=KillAfter(1))
    with pytest.raises(Killed):
        train(tmp_path, *[Other()] * (lost == "by a part without it"), watcher=KillAfter(2), resume=True)
    second = Remembered()
    train(tmp_path, second, resume=True)
    assert (second.run.step, second.steps) == (0, STEPS)
    assert second.run.identifier == first.run.identifier


class Other(Remembered):
    """Another kind of tracker."""


def test_an_epoch_that_is_trained_again_is_logged_again(tmp_path, monkeypatch):
    """A kill may come after an epoch is logged, and before there is a checkpoint of it."""

    def killed(*_):
        raise Killed

    first, second = Remembered(), Remembered()
    with pytest.raises(Killed):
        train(tmp_path, first, watcher=AtTheEnd(1, lambda: monkeypatch.setattr(loop, "_save", killed)))
    monkeypatch.undo()
    train(tmp_path, second, resume=True)
    assert (first.steps, second.run.step, second.steps) == (STEPS[:2], STEPS[0], STEPS[1:])
    values = [next(call[2] for call in one.told if call[:2] == ("log", STEPS[1])) for one in (first, second)]
    assert values[0]["train_loss"] == values[1]["train_loss"]


class AtTheEnd(KillAfter):
    """A watcher that does something at the end of an epoch."""

    def __init__(self, epoch, act):
        super().__init__(epoch)
        self.act = act

    def finished_epoch(self, record):
        if record.epoch == self.epoch:
            self.act()


def test_a_finished_run_is_not_tracked_again(plain):
    tracker = Remembered()
    train(plain, tracker, resume=True)
    assert tracker.told == []


@pytest.mark.parametrize("where", ["start", "log", "finish"])
def test_a_tracker_that_raises_is_left_out_with_one_warning(plain, tmp_path, where):
    bad, good = Remembered(raises={where}), Remembered()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        train(tmp_path, bad, good)
    (told,) = [str(one.message) for one in said if "track" in str(one.message)]
    assert told == "Remembered no longer tracks this run, which goes on (ConnectionError: no answer)"
    assert bad.calls.count(where) == 1
    assert bad.calls[-1] == where
    assert good.calls == ["start", "log", "log", "log", "finish"]
    assert (tmp_path / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()


def test_a_record_of_trackers_that_is_damaged_ends_no_run(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, Remembered(), watcher=KillAfter(1))
    (tmp_path / RECORD).write_text("{", encoding="utf-8")
    tracker = Remembered()
    with pytest.warns(UserWarning, match=r"tracking.json' is damaged .* tracked as another"):
        train(tmp_path, tracker, resume=True)
    assert tracker.steps == STEPS


def test_a_run_that_diverges_is_ended_without_a_result(tmp_path):
    tracker = Remembered()
    with pytest.raises(InputError, match="the loss became"):
        loop.train(change(SMALL, lr=1e30, sharpness="none"), tmp_path / "run", tracking=Tracking([tracker]))
    assert tracker.told[-1] == ("finish", None)


@pytest.mark.parametrize("name", TRACKERS)
@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_missing_package_is_a_line_that_says_what_to_install(tmp_path, monkeypatch, capsys, command, name):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    told = fails(capsys, command, *QUICK, "--track", name, "--out", str(tmp_path / "run"))
    package = {"tensorboard": "'flatsparse[track]'"}.get(name, name)
    assert told.endswith(f"--track {name} needs {name}, which is not installed: pip install {package}\n")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_a_package_left_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "trackio").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    with pytest.raises(InputError, match="trackio, which is not installed"):
        check_trackers(["trackio"])


def test_each_run_of_a_comparison_is_tracked_in_its_group(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setitem(TRACKERS, "wandb", lambda: seen.append(Remembered()) or seen[-1])
    monkeypatch.setattr(tracking, "find_spec", lambda name: ModuleSpec(name, None, origin="somewhere"))
    settings = ["--seeds", "1", "--sharpness", "s2sam", "--jobs", "1", "--track", "wandb"]
    main(["compare", *QUICK, *settings, "--out", str(tmp_path / "mine")])
    assert [one.run.folder.name for one in seen] == ["noise0-none-seed0", "noise0-s2sam-seed0"]
    assert {one.run.group for one in seen} == {"mine"}
    assert len({one.run.identifier for one in seen}) == 2
    assert all(one.calls == ["start", "log", "log", "finish"] for one in seen)
    main(["compare", *QUICK, *settings[:-2], "--out", str(tmp_path / "mine"), "--resume"])
