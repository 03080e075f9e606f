"""Corrupted copies of a data set's test images, made once in each process, and a net's accuracy on them."""

from __future__ import annotations

import functools
import itertools
import statistics

import torch
from torch import Tensor

from flatsparse.experiments.data.corruptions import MAIN, SEVERITIES, corrupt
from flatsparse.experiments.data.sources import load
from flatsparse.experiments.robustness import percent, right_predictions
from flatsparse.experiments.run.load import Finished


def accuracies(net: Finished, count: int) -> dict[str, float]:
    """Return a net's accuracy for each of the fifteen corruptions, the mean over five severities, on ``count`` test images."""
    return {
        name: statistics.fmean(percent(right_predictions([net], [part])[0]) for part in parts)
        for name, parts in _copies(net.result.data, count).items()
    }


@functools.cache
def _copies(data: str, count: int) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Return the copies at each severity, of images at even distances, with their labels."""
    test = load(data).test
    chosen = torch.arange(count) * len(test.labels) // count
    images, labels = test.at(chosen), test.labels[chosen]
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, severity in itertools.product(MAIN, SEVERITIES):
        found.setdefault(name, []).append((corrupt(images, name, severity), labels))
    return found
