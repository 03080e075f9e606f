"""Training that keeps the weights of the best epoch by validation accuracy."""

from __future__ import annotations

import copy
from typing import Any

from flatsparse.experiments.run.build import build
from flatsparse.experiments.run.checkpoint import Progress
from flatsparse.experiments.run.config import RunConfig
from flatsparse.experiments.run.epoch import train_epoch
from flatsparse.experiments.run.evaluation import evaluate
from flatsparse.experiments.run.resolve import resolve
from flatsparse.experiments.run.watcher import Silent


def measured_run(run: RunConfig, *, stop: bool) -> dict[str, Any]:
    """Train, and return what a line of a registered plan holds.

    Args:
        stop: measure the weights of the best epoch, the earlier of equals, and not those of the last.
    """
    parts = build(resolve(run))
    progress, best, kept = Progress(), -1.0, None
    for _ in range(run.schedule.epochs):
        record = train_epoch(parts, progress, Silent(), None)
        assert record.validation_accuracy is not None
        if stop and record.validation_accuracy > best:
            best, kept = record.validation_accuracy, (copy.deepcopy(parts.model.state_dict()), progress.epoch)
    if kept is not None:
        parts.training.detach()
        parts.model.load_state_dict(kept[0])
    splits = parts.task.splits
    validation, test = (evaluate(parts, split) for split in (splits.validation, splits.test))
    assert validation is not None
    assert test is not None
    return {
        "epoch": kept[1] if kept else progress.epoch,
        "gradients": progress.gradient_evaluations,
        "train_accuracy": record.train_accuracy,
        "validation": validation.value,
        "test": test.value,
    }
