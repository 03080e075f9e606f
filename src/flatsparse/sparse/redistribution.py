"""Redistribution: all layers drop weights, and as many grow in the whole net, which changes layers' counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flatsparse.schedules import Schedule, Timetable
from flatsparse.sparse.masks import MaskedWeight
from flatsparse.sparse.rules import Rule
from flatsparse.sparse.scores import Score, magnitude, needs_dense_gradient
from flatsparse.sparse.state import TrainingState
from flatsparse.sparse.topk import apportion, keep_top

Drop = Callable[[TrainingState, int], dict[str, Tensor]]  # state, step -> what each layer keeps of its active weights
Share = Callable[[MaskedWeight, Tensor], float]  # a layer before the drop, what it keeps -> its share of the growth


@dataclass(frozen=True)
class Redistribute(Rule):
    """Drop active weights, and grow as many in the whole net, allocated anew to the layers; the total stays.

    A layer grows at most to its size; the rest goes to the others. Every layer that has active weights keeps one.

    Attributes:
        when: the steps at which it acts.
        drop: returns what each layer keeps.
        share: returns a layer's share of the growth.
        grow: the score of all that is not kept; in each layer the highest are grown.
    """

    when: Timetable
    drop: Drop
    share: Share
    grow: Score
    weight_step: bool = True

    @property
    def dense_gradient(self) -> bool:
        return needs_dense_gradient(self.grow)

    def __call__(self, state: TrainingState, step: int) -> dict[str, Tensor]:
        kept, masks = self.drop(state, step), state.masks
        left = {name: int(k.sum()) for name, k in kept.items()}
        counts = apportion(
            masks.active - sum(left.values()),
            [self.share(w, kept[w.name]) for w in masks],
            caps=[w.weight.numel() - left[w.name] for w in masks],
            floors=[int(left[w.name] == 0 < w.active) for w in masks],
        )
        return {
            w.name: kept[w.name] | keep_top(self.grow(w), count, among=~kept[w.name])
            for w, count in zip(masks, counts, strict=True)
        }


@dataclass(frozen=True)
class SmallestOfEach:
    """Drop the same fraction of every layer's active weights, the smallest (sparse momentum: Dettmers & Zettlemoyer 2019)."""

    fraction: Schedule

    def __call__(self, state: TrainingState, step: int) -> dict[str, Tensor]:
        return {
            w.name: keep_top(magnitude(w), w.active - int(self.fraction(step) * w.active), among=w.mask)
            for w in state.masks
        }


@dataclass(frozen=True)
class BelowThreshold:
    """Drop what is smaller than a threshold, one for the whole net, which adapts (DSR: Mostafa & Wang 2019, Alg. 1).

    When more than 1.1 times the target was dropped the threshold halves, when less than 0.9 times it doubles. Of each
    layer that has active weights at least the largest is kept. The threshold is remembered as ``memory["threshold"]``.

    Attributes:
        first: the threshold to begin with.
        target: the fraction of the active weights to drop at an update.
    """

    first: float
    target: float

    def __call__(self, state: TrainingState, step: int) -> dict[str, Tensor]:
        masks, threshold = state.masks, state.memory.get("threshold", self.first)
        kept = {w.name: _above(w, threshold) for w in masks}
        dropped = masks.active - sum(int(k.sum()) for k in kept.values())
        target = self.target * masks.active
        if dropped > 1.1 * target:
            threshold /= 2
        elif dropped < 0.9 * target:
            threshold *= 2
        state.memory["threshold"] = threshold
        return kept


def _above(w: MaskedWeight, threshold: float) -> Tensor:
    kept = w.mask & (magnitude(w) >= threshold)
    return kept if kept.any() else keep_top(magnitude(w), min(1, w.active), among=w.mask)


def survivors(w: MaskedWeight, kept: Tensor) -> float:
    """Return the number of weights that the layer keeps (DSR: Mostafa & Wang 2019, Alg. 1)."""
    return float(kept.sum())


def mean_momentum(w: MaskedWeight, kept: Tensor) -> float:
    """Return the mean ``|momentum|`` of the weights that were active (sparse momentum: Dettmers & Zettlemoyer 2019)."""
    if w.momentum is None or w.active == 0:
        return 0.0
    sizes = torch.where(w.mask, w.momentum, 0).abs()
    mean = float(sizes.sum()) / w.active
    return mean if math.isfinite(mean) else float((sizes / w.active).sum())  # the sum may be beyond float32
