"""Rules change masks at certain steps: DropAndGrow moves active weights, PruneTo prunes some, GrowTo grows some."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flatsparse.schedules import Schedule, Timetable
from flatsparse.sparse.distributions import Distribution
from flatsparse.sparse.expected import ExpectedCounts
from flatsparse.sparse.masks import MaskedWeight
from flatsparse.sparse.pattern import UNSTRUCTURED, Pattern
from flatsparse.sparse.scores import Score, needs_dense_gradient
from flatsparse.sparse.state import TrainingState
from flatsparse.sparse.topk import apportion, budget, keep_top


class Rule:
    """A way to make new masks at certain steps; a base class with default attributes.

    Attributes:
        when: the steps at which it acts.
        weight_step: the weights are also updated at such a step (under the old masks, before it acts).
        changes_counts: ``counts`` predicts each layer's count of active weights after it.
    """

    when: Timetable
    weight_step: bool = True
    changes_counts: ClassVar[bool] = False

    @property
    def dense_gradient(self) -> bool:
        """True if it reads the gradient of masked weights."""
        return False

    def __call__(self, state: TrainingState, step: int) -> dict[str, Tensor]:
        """Return new masks by name; layers that are left out keep theirs."""
        raise NotImplementedError(f"{type(self).__name__} gives no masks: write its __call__(state, step)")

    def counts(self, expected: ExpectedCounts, step: int) -> dict[str, int]:
        """Return each layer's count of active weights after it, given the counts before it."""
        return expected.active


@dataclass(frozen=True)
class DropAndGrow(Rule):
    """Drop a fraction of each layer's active weights and grow as many elsewhere; every layer's count stays.

    Just-dropped weights may be grown again and then keep their values (as in RigL's published code).

    Attributes:
        when: the steps at which it acts.
        fraction: of the active weights, by step.
        drop: the score of active weights; the lowest are dropped.
        grow: the score of all that is not kept; the highest are grown.
        pattern: what masks keep to; of blocks, whole ones are dropped and grown.
    """

    when: Timetable
    fraction: Schedule
    drop: Score
    grow: Score
    weight_step: bool = True
    pattern: Pattern = UNSTRUCTURED

    @property
    def dense_gradient(self) -> bool:
        return needs_dense_gradient(self.drop) or needs_dense_gradient(self.grow)

    def __call__(self, state: TrainingState, step: int) -> dict[str, Tensor]:
        return {w.name: self.updated(w, self.fraction(step)) for w in state.masks}

    def updated(self, w: MaskedWeight, fraction: float) -> Tensor:
        """Return one layer's new mask; the old one for a layer that had no gradient to score by."""
        if self.dense_gradient and w.dense_grad is None:
            return w.mask
        return self.pattern.moved(w, fraction, self.drop, self.grow)


@dataclass(frozen=True)
class PruneTo(Rule):
    """Keep the best of the active weights at a sparsity that grows with the step.

    Attributes:
        when: the steps at which it acts.
        sparsity: of all prunable weights, by step.
        keep: the score of active weights; the highest are kept.
        distribution: allocates the active weights to layers.
        pattern: what masks keep to, of any sparsity.
    """

    when: Timetable
    sparsity: Schedule
    keep: Score
    distribution: Distribution
    weight_step: bool = True
    pattern: Pattern = UNSTRUCTURED
    changes_counts: ClassVar[bool] = True

    @property
    def dense_gradient(self) -> bool:
        return needs_dense_gradient(self.keep)

    def __call__(self, state: TrainingState, step: int) -> dict[str, Tensor]:
        turned, ranked = state.masks.inputs_first, self.pattern.ranked
        active_first: Callable[[MaskedWeight], Tensor] = lambda w: torch.where(  # noqa: E731
            w.mask, _numbers(self.keep(w)), -torch.inf
        )
        scores = {w.name: ranked(active_first(w), w.name, w.inputs_first) for w in state.masks}
        counts = self._counts(scores, state.masks.counts, step)
        return {name: self.pattern.best(scores.pop(name), count, turned[name]) for name, count in counts.items()}

    def counts(self, expected: ExpectedCounts, step: int) -> dict[str, int]:
        return self._counts(expected.scores, expected.active, step)

    def _counts(self, scores: Mapping[str, Tensor], active: Mapping[str, int], step: int) -> dict[str, int]:
        total = max(budget(sum(s.numel() for s in scores.values()), self.sparsity(step)), len(scores))  # one each
        # What is pruned stays pruned.
        return self.pattern.counts(scores, min(total, sum(active.values())), self.distribution, most=active)


def _numbers(scores: Tensor) -> Tensor:
    """Return scores with NaN as the lowest of all and no infinities, which are kept for what is chosen or left out for sure."""
    kind = torch.finfo(scores.dtype)
    lowest = kind.min / 1024  # of which a block's sum is a number too
    return scores.nan_to_num(nan=lowest, posinf=kind.max, neginf=lowest)


@dataclass(frozen=True)
class GrowTo(Rule):
    """Grow the best of the pruned weights to a sparsity that may change with the step; nothing is pruned.

    Attributes:
        when: the steps at which it acts.
        sparsity: of all prunable weights, by step.
        grow: the score of pruned weights; the highest are grown.
        distribution: allocates the active weights to layers, as they are afterwards.
    """

    when: Timetable
    sparsity: Schedule
    grow: Score
    distribution: Distribution
    weight_step: bool = True
    changes_counts: ClassVar[bool] = True

    @property
    def dense_gradient(self) -> bool:
        return needs_dense_gradient(self.grow)

    def __call__(self, state: TrainingState, step: int) -> dict[str, Tensor]:
        scores = {w.name: torch.where(w.mask, torch.inf, w.among_growable(_numbers(self.grow(w)))) for w in state.masks}
        counts = self._counts(scores, {w.name: w.active for w in state.masks}, step)
        return {name: keep_top(scores.pop(name), count) for name, count in counts.items()}

    def counts(self, expected: ExpectedCounts, step: int) -> dict[str, int]:
        return self._counts(expected.scores, expected.active, step)

    def _counts(self, scores: Mapping[str, Tensor], active: Mapping[str, int], step: int) -> dict[str, int]:
        total = budget(sum(s.numel() for s in scores.values()), self.sparsity(step))
        growable = [int((s != -torch.inf).sum()) for s in scores.values()]
        total = min(max(total, sum(active.values())), sum(growable))
        shares = self.distribution(scores, total)
        # A layer may have more than its share already; it keeps that, and the others have the rest.
        counts = apportion(total, list(shares.values()), growable, list(active.values()))
        return dict(zip(scores, counts, strict=True))
