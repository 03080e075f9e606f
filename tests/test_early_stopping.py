"""Runs of registered plans that are stopped early, beside weights that were kept by hand."""

import importlib
from pathlib import Path

import pytest
import torch

import flatsparse as fs
from flatsparse.experiments.run.build import build
from flatsparse.experiments.run.checkpoint import Progress
from flatsparse.experiments.run.config import RunConfig
from flatsparse.experiments.run.epoch import train_epoch
from flatsparse.experiments.run.resolve import resolve
from flatsparse.experiments.run.watcher import Silent

FOLDER = Path(__file__).parent.parent / "benchmarks"
EPOCHS = 3
# Masks move in the last epoch too, so that those of the best epoch may be others than the last.
SHARED = {"data": "digits", "train_size": 100, "validation_size": 50, "batch_size": 25, "epochs": EPOCHS}
SHARED |= {"method": "rigl", "sparsity": 0.9, "every": 3, "until": 0.95, "lr": 0.3, "lr_schedule": "constant"}


@pytest.fixture
def measured_run(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("early_stopping").measured_run


def by_hand(run):
    """The accuracies, in percent, on validation and test images of fresh networks with the weights after each epoch."""
    parts, progress, found = build(resolve(run)), Progress(), []
    splits = parts.task.splits
    for _ in range(EPOCHS):
        train_epoch(parts, progress, Silent(), None)
        model = fs.models.digitnet()
        model.load_state_dict({name: value.clone() for name, value in parts.model.state_dict().items()})
        found.append(tuple(accuracy(model.eval(), split) for split in (splits.validation, splits.test)))
    return found


@torch.no_grad()
def accuracy(model, split):
    ((images, labels), _, _) = next(iter(split.batches(len(split))))
    return 100 * int((model(images).argmax(1) == labels).sum()) / len(split)


@pytest.mark.parametrize("more", [{}, {"sharpness": "s2sam", "rho": 0.2, "accelerate": True}])
def test_the_weights_of_the_best_epoch_are_measured(measured_run, more):
    """Until the best epoch was once the last and once an earlier one."""
    last = set()
    for seed in range(1, 9):
        run = RunConfig.of(**SHARED, **more, label_noise=0.2, seed=seed)
        hand, stopped = by_hand(run), measured_run(run, stop=True)
        best = max(range(EPOCHS), key=lambda epoch: hand[epoch][0])  # max takes the first of equals
        assert stopped["epoch"] == best + 1
        assert (stopped["validation"], stopped["test"]) == pytest.approx(hand[best], abs=0.3)
        assert stopped["gradients"] == EPOCHS * 4
        if best == EPOCHS - 1 and best not in last:
            assert measured_run(run, stop=False) == stopped
        last.add(best)
        if len(last) > 1 and EPOCHS - 1 in last:
            return
    pytest.fail(f"the best epochs were {last}")
