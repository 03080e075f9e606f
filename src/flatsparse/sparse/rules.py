"""Rules change masks at certain steps: Rewire moves live weights, PruneTo takes some away, GrowTo adds some."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from flatsparse.schedules import Schedule, Timetable
from flatsparse.sparse.distributions import Distribution
from flatsparse.sparse.masks import MaskedWeight, Masks
from flatsparse.sparse.n_of_m import Pattern
from flatsparse.sparse.scores import Score, needs_dense_gradient
from flatsparse.sparse.topk import apportion, budget, keep_top


class Rule(Protocol):
    """Something that gives new masks at certain steps.

    Attributes:
        when: whether it acts at an optimizer step.
        weight_step: whether the weights are also updated at such a step (under the old masks, before it acts).
        dense_gradient: whether it reads the gradient of masked weights.
    """

    @property
    def when(self) -> Timetable: ...
    @property
    def weight_step(self) -> bool: ...
    @property
    def dense_gradient(self) -> bool: ...
    def __call__(self, masks: Masks, step: int) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Rewire:
    """In each layer drop a fraction of the live weights and grow as many elsewhere; every layer's count stays.

    What was just dropped may be grown again and then keeps its value (as in RigL's published code).

    Attributes:
        when: at which steps.
        fraction: of the live weights, by step.
        drop: the lowest scores go.
        grow: the highest scores among all that is not kept come.
        pattern: grow within the groups that lost weights, so that each keeps its count.
    """

    when: Timetable
    fraction: Schedule
    drop: Score
    grow: Score
    weight_step: bool = True
    pattern: Pattern | None = None

    @property
    def dense_gradient(self) -> bool:
        return needs_dense_gradient(self.drop) or needs_dense_gradient(self.grow)

    def __call__(self, masks: Masks, step: int) -> dict[str, Tensor]:
        return {w.name: self.rewired(w, self.fraction(step)) for w in masks}

    def rewired(self, w: MaskedWeight, fraction: float) -> Tensor:
        """One layer's new mask; the old one for a layer that had no gradient to score by."""
        if self.dense_gradient and w.dense_grad is None:
            return w.mask
        moved = int(fraction * w.active)
        if moved == 0:
            return w.mask
        kept = keep_top(self.drop(w), w.active - moved, among=w.mask)
        if self.pattern is not None:
            return self.pattern.rewired(kept, self.grow(w), w.name, w.inputs_first)
        return kept | keep_top(self.grow(w), moved, among=~kept if w.room is None else ~kept & w.room.to(kept.device))


@dataclass(frozen=True)
class PruneTo:
    """Keep the best of the live weights at a sparsity that grows with the step.

    Attributes:
        when: at which steps.
        sparsity: of all prunable weights, by step.
        keep: the highest scores stay.
        distribution: how the live weights are shared out between layers.
    """

    when: Timetable
    sparsity: Schedule
    keep: Score
    distribution: Distribution
    weight_step: bool = True

    @property
    def dense_gradient(self) -> bool:
        return needs_dense_gradient(self.keep)

    def __call__(self, masks: Masks, step: int) -> dict[str, Tensor]:
        live_first: Callable[[MaskedWeight], Tensor] = lambda w: torch.where(w.mask, self.keep(w), -torch.inf)  # noqa: E731
        scores = {w.name: live_first(w) for w in masks}
        counts = self.counts(scores, {w.name: w.active for w in masks}, step)
        return {name: keep_top(s, counts[name]) for name, s in scores.items()}

    def counts(self, scores: Mapping[str, Tensor], live: Mapping[str, int], step: int) -> dict[str, int]:
        """How many live weights each layer then has, given how many it had."""
        total = max(budget(sum(s.numel() for s in scores.values()), self.sparsity(step)), len(scores))  # one each
        total = min(total, sum(live.values()))
        shares = self.distribution(scores, total)
        # Rounding can give a layer one more than it has left; what is pruned stays pruned, so another layer has it.
        counts = apportion(total, list(shares.values()), list(live.values()), [min(1, n) for n in live.values()])
        return dict(zip(scores, counts, strict=True))


@dataclass(frozen=True)
class GrowTo:
    """Grow the best of the dead weights to a sparsity that may change with the step; nothing is taken away.

    Attributes:
        when: at which steps.
        sparsity: of all prunable weights, by step.
        grow: the highest scores among the dead weights come.
        distribution: how the live weights are shared out between layers afterwards.
    """

    when: Timetable
    sparsity: Schedule
    grow: Score
    distribution: Distribution
    weight_step: bool = True

    @property
    def dense_gradient(self) -> bool:
        return needs_dense_gradient(self.grow)

    def __call__(self, masks: Masks, step: int) -> dict[str, Tensor]:
        scores = {w.name: torch.where(w.mask, torch.inf, w.within_room(self.grow(w))) for w in masks}
        counts = self.counts(scores, {w.name: w.active for w in masks}, step)
        return {name: keep_top(s, counts[name]) for name, s in scores.items()}

    def counts(self, scores: Mapping[str, Tensor], live: Mapping[str, int], step: int) -> dict[str, int]:
        """How many live weights each layer then has, given how many it had."""
        total = budget(sum(s.numel() for s in scores.values()), self.sparsity(step))
        rooms = [int((s != -torch.inf).sum()) for s in scores.values()]
        total = min(max(total, sum(live.values())), sum(rooms))
        shares = self.distribution(scores, total)
        # A layer may have more than its share already; it keeps that, and the others have the rest.
        counts = apportion(total, list(shares.values()), rooms, list(live.values()))
        return dict(zip(scores, counts, strict=True))
