"""Metrics beside accuracy: macro scores, accuracy above chance, steps to an accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from flatsparse.experiments.data.samples import IGNORED
from flatsparse.experiments.run.records import EpochRecord

REACHED = (50, 60, 70, 80, 90, 95)  # percent; the levels of ``steps_to`` in a result


def confusion(outputs: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Return how often each class (row) was predicted as each (column), int64 (classes, classes), over all that has a target."""
    has_target = targets != IGNORED
    pairs = targets[has_target] * classes + outputs.argmax(-1)[has_target]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def macro(counts: Tensor) -> dict[str, float]:
    """Return precision, recall and F1 in percent, each a plain mean over the classes that occur among the labels.

    F1 is the mean of the classes' F1, not the F1 of the means (the two differ: Opitz & Burst 2019). A class that is
    never predicted has precision 0.

    Args:
        counts: see ``confusion``.
    """
    counts = counts.double()
    occurs = counts.sum(1) > 0
    hits, predicted, actual = counts.diagonal()[occurs], counts.sum(0)[occurs], counts.sum(1)[occurs]
    scores = {
        "precision": hits / predicted.clamp(min=1),
        "recall": hits / actual,
        "f1": 2 * hits / (predicted + actual),
    }
    return {name: 100 * float(value.mean()) for name, value in scores.items()}


def above_chance(counts: Tensor) -> bool:
    """Return if accuracy exceeds that of always naming the commonest class by over three standard deviations (ours).

    Args:
        counts: see ``confusion``.
    """
    total, commonest = int(counts.sum()), int(counts.sum(1).max())
    spread = math.sqrt(commonest * (1 - commonest / total))
    return int(counts.diagonal().sum()) > commonest + 3 * spread


def steps_to(epochs: Iterable[EpochRecord], accuracy: float) -> int | None:
    """Return the optimizer steps at the end of the first epoch that reaches an accuracy in percent on the validation images.

    None when no epoch does. Test accuracy is measured once, at the end of a run, so it cannot be asked for.
    """
    for epoch in epochs:
        if epoch.validation_accuracy is not None and epoch.validation_accuracy >= accuracy:
            return epoch.step
    return None
