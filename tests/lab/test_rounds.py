"""Runs in rounds: what they record, what they resume, and the dense first round that they share."""

import json

import pytest
import torch
from safetensors.torch import load_file

from flatsparse.errors import InputError
from flatsparse.lab import training as loop
from flatsparse.lab.build import build
from flatsparse.lab.run import Run
from tests.lab.test_training import KillAfter, Killed

rewinding = pytest.mark.parametrize("method", ["lth", "lrr"])


def run_of(method, **changes):
    settings = {"sparsity": 0.7, "drop_fraction": 0.3, "epochs": 2, "train_size": 64, "batch_size": 16, **changes}
    return Run(method=method, validation_size=50, sharpness="s2sam", **settings)


def records(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights(out):
    return load_file(out / "model.safetensors")


def same_weights(one, other):
    ours, theirs = weights(one), weights(other)
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


@rewinding
def test_a_run_has_all_its_rounds_in_one_folder(tmp_path, method):
    result = loop.train(run_of(method), tmp_path)
    assert [r["round"] for r in records(tmp_path)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    rates = [r["lr"] for r in records(tmp_path)]
    assert rates == rates[:2] * 5  # the schedule starts anew
    assert result["rounds"] == run_of(method).rounds
    assert (result["rounds"], result["epochs"], result["steps"], result["gradient_evaluations"]) == (5, 10, 40, 40)
    masks = build(run_of(method).resolved()).training.masks
    saved = weights(tmp_path)
    total = sum(m.numel() for m in masks.values())
    assert sum(int((saved[name] == 0).sum()) for name in masks) == round(0.7 * total)
    share = result["flops"]["train"] / result["flops"]["train_dense"]
    assert 1 + 4 * result["flops"]["inference"] / result["flops"]["inference_dense"] < share < 5


@rewinding
@pytest.mark.parametrize("epoch", [1, 2, 3, 8])
def test_a_run_killed_in_or_between_rounds_ends_as_if_undisturbed(tmp_path, monkeypatch, method, epoch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    run = run_of(method)
    loop.train(run, tmp_path / "whole")
    with pytest.raises(Killed):
        loop.train(run, tmp_path / "killed", watcher=KillAfter(epoch))
    loop.train(run, tmp_path / "killed", resume=True)
    assert same_weights(tmp_path / "whole", tmp_path / "killed")


class Count(loop.Silent):
    def __init__(self):
        self.epochs = []

    def finished_epoch(self, record):
        self.epochs.append(record["epoch"])


@pytest.mark.parametrize("rewind", [0, 3])
def test_a_shared_dense_round_is_trained_once_and_changes_nothing(tmp_path, rewind):
    parent = tmp_path / "parent"
    early = {"rewind": rewind} if rewind else {}
    loop.train(run_of("lth" if rewind else "lrr", **early), tmp_path / "first", parent=parent)
    (file,) = parent.iterdir()
    run, count = run_of("lth", sparsity=0.5, **early), Count()
    loop.train(run, tmp_path / "shared", parent=parent, watcher=count)
    loop.train(run, tmp_path / "alone")
    assert count.epochs[0] == 3
    assert same_weights(tmp_path / "shared", tmp_path / "alone")
    assert len(records(tmp_path / "shared")) == len(records(tmp_path / "alone"))
    loop.train(run_of("lth", seed=1, **early), tmp_path / "other", parent=parent)
    assert len(list(parent.iterdir())) == 2
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="checksum"):
        loop.train(run, tmp_path / "damaged", parent=parent)
