"""Figures of a finished run beyond its accuracy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from flatsparse.experiments.data.splits import IGNORED

REACHED = (50, 60, 70, 80, 90, 95)  # percent; what ``steps_to`` in a result asks for


def confusion(outputs: Tensor, targets: Tensor, classes: int) -> Tensor:
    """How often each class (row) was taken for each (column), int64 (classes, classes), where anything is asked for."""
    asked = targets != IGNORED
    pairs = targets[asked] * classes + outputs.argmax(-1)[asked]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def macro(counts: Tensor) -> dict[str, float]:
    """Precision, recall and F1 in percent, each a plain mean over the classes that occur among the labels.

    F1 is the mean of the classes' F1, not the F1 of the means (the two differ: Opitz & Burst 2019). A class that is
    never predicted has precision 0.

    Args:
        counts: see ``confusion``.
    """
    counts = counts.double()
    there = counts.sum(1) > 0
    hits, predicted, actual = counts.diagonal()[there], counts.sum(0)[there], counts.sum(1)[there]
    parts = {
        "precision": hits / predicted.clamp(min=1),
        "recall": hits / actual,
        "f1": 2 * hits / (predicted + actual),
    }
    return {name: 100 * float(value.mean()) for name, value in parts.items()}


def above_chance(counts: Tensor) -> bool:
    """Whether more is right than naming the commonest class each time gets right, by over three standard deviations (ours).

    Args:
        counts: see ``confusion``.
    """
    total, commonest = int(counts.sum()), int(counts.sum(1).max())
    spread = math.sqrt(commonest * (1 - commonest / total))
    return int(counts.diagonal().sum()) > commonest + 3 * spread


def steps_to(records: Iterable[Mapping[str, Any]], accuracy: float) -> int | None:
    """The optimizer steps at the end of the first epoch that reaches an accuracy in percent on the validation images.

    None when no epoch does. Test accuracy is looked at once, at the end of a run, so it cannot be asked for.

    Args:
        records: the epochs, as ``metrics.jsonl`` has them.
    """
    for record in records:
        if record["validation_accuracy"] is not None and record["validation_accuracy"] >= accuracy:
            return int(record["step"])
    return None
