"""Scores of a classifier from its confusion matrix: macro scores, accuracy above chance."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def confusion(outputs: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Return how often each class (row) was predicted as each (column), int64 (classes, classes)."""
    pairs = targets * classes + outputs.argmax(-1)
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
