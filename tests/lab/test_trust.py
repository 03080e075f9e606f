"""Runs that meet damage, kills and missing folders."""

import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from flatsparse.errors import InputError
from flatsparse.lab import training as loop
from flatsparse.lab.run import Run

RUN = Run(train_size=64, validation_size=50, batch_size=16, epochs=4, sparsity=0.9, sharpness="s2sam")


class Killed(BaseException):
    """Stands for a kill between two epochs."""


class After(loop.Silent):
    """Does something after an epoch."""

    def __init__(self, epoch, act):
        self.epoch, self.act = epoch, act

    def finished_epoch(self, record):
        if record["epoch"] == self.epoch:
            self.act()


def kill():
    raise Killed


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A run's folder after three of its four epochs."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(Killed):
        loop.train(RUN, tmp_path / "run", watcher=After(3, kill))
    return tmp_path / "run"


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def test_a_kill_between_keeping_the_last_checkpoint_and_writing_the_next_leaves_nothing_behind(stopped, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 1e9)  # so that the next checkpoint is the last
    (stopped / "checkpoint.previous.pt").unlink()
    os.link(stopped / "checkpoint.pt", stopped / "checkpoint.previous.pt")
    loop.train(RUN, stopped, resume=True)
    assert not list(stopped.glob(".*"))
    assert not (stopped / "checkpoint.previous.pt").samefile(stopped / "checkpoint.pt")


def test_a_file_system_without_hard_links_will_do(tmp_path, monkeypatch):
    def no_links(*names):
        raise PermissionError

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    loop.train(RUN, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoint.previous.pt").is_file()
    assert not list((tmp_path / "run").glob(".*"))


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_goes_on(stopped, tmp_path):
    whole = loop.train(RUN, tmp_path / "whole")
    flip(stopped / "checkpoint.pt")
    with pytest.raises(InputError, match=r"checkpoint\.pt' is damaged"):
        loop.train(RUN, stopped, resume=True)
    (stopped / "checkpoint.previous.pt").replace(stopped / "checkpoint.pt")
    again = loop.train(RUN, stopped, resume=True)
    assert again["test_accuracy"] == whole["test_accuracy"]
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (stopped, tmp_path / "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_damaged_configuration_or_result_is_named(stopped):
    flip(stopped / "config.json")
    with pytest.raises(InputError, match=r"config\.json' is damaged"):
        loop.train(RUN, stopped, resume=True)


def test_a_damaged_result_is_named(tmp_path):
    loop.train(RUN, tmp_path / "run")
    flip(tmp_path / "run" / "result.json")
    with pytest.raises(InputError, match=r"result\.json' is damaged"):
        loop.train(RUN, tmp_path / "run", resume=True)


def test_a_damaged_curve_of_a_stopped_run_is_written_anew_from_the_checkpoint(stopped):
    whole = (stopped / "metrics.jsonl").read_text()
    (stopped / "metrics.jsonl").write_text("half a li")
    loop.train(RUN, stopped, resume=True)
    assert (stopped / "metrics.jsonl").read_text().startswith(whole)


def test_a_checkpoint_of_another_run_is_refused_with_the_first_difference(stopped, tmp_path, monkeypatch):
    other = Run(**{**vars(RUN), "lr": 0.2})
    with pytest.raises(Killed):
        loop.train(other, tmp_path / "other", watcher=After(1, kill))
    shutil.copy(stopped / "checkpoint.pt", tmp_path / "other" / "checkpoint.pt")
    with pytest.raises(InputError, match=r"--lr 0\.1, not 0\.2"):
        loop.train(other, tmp_path / "other", resume=True)


def test_a_folder_removed_under_a_run_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(InputError, match="cannot write") as caught:
        loop.train(RUN, tmp_path / "run", watcher=After(2, lambda: shutil.rmtree(tmp_path / "run")))
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_line_and_the_last_checkpoint_goes_on(stopped, tmp_path, monkeypatch):
    before = (stopped / "checkpoint.pt").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match="No space left") as caught:
            loop.train(RUN, stopped, resume=True)
    assert "\n" not in str(caught.value)
    assert (stopped / "checkpoint.pt").read_bytes() == before
    assert loop.train(RUN, stopped, resume=True)["steps"] == 16


def test_a_diverged_run_keeps_its_last_good_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    epoch = loop._epoch

    def diverging(run, parts, progress, *others):
        record = epoch(run, parts, progress, *others)
        return {**record, "train_loss": float("inf")} if progress.epoch == 3 else record

    monkeypatch.setattr(loop, "_epoch", diverging)
    with pytest.raises(InputError, match=r"inf in epoch 3.*checkpoint is kept"):
        loop.train(RUN, tmp_path / "run")
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["progress"]["epoch"] == 2
