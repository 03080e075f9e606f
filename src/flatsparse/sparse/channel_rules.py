"""Channel pruning: rules that prune whole channels, for good or until they are regrown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flatsparse.common.errors import InputError, check_fraction
from flatsparse.schedules import Schedule, Timetable
from flatsparse.sparse.channel_choice import Eligible, removable
from flatsparse.sparse.channel_scores import FilterScore, draw, finite, leverage, residuals, select_channels
from flatsparse.sparse.channel_state import ChannelGroup, ChannelState
from flatsparse.sparse.expected import ExpectedCounts
from flatsparse.sparse.rules import Rule
from flatsparse.sparse.state import TrainingState
from flatsparse.sparse.topk import apportion, budget, keep_top


@dataclass(frozen=True)
class ChannelPruning:
    """The channel pruning of a plan.

    Attributes:
        removed: the fraction of all channels that may be pruned which is at the end, to the channel.
        first: the same at the start, of every group alike; the filters with the smallest L1 norm go.
        least: the share of a group's channels that always stay, rounded down, but one at least.
        eligible: chooses the channels that may be pruned.
        restores: channels that return take up the values that they last had.
    """

    removed: float
    first: float = 0.0
    least: float = 0.0
    eligible: Eligible = removable
    restores: bool = False

    def __post_init__(self) -> None:
        check_fraction("least", self.least)
        if not 0 <= self.removed < 1:
            raise InputError(
                f"channels {self.removed} is not in [0, 1): give the fraction of channels to remove, e.g. 0.5"
            )

    def floors(self, groups: Sequence[ChannelGroup]) -> list[int]:
        """Return the fewest channels that each group keeps."""
        return [max(1, math.floor(self.least * g.group.size + 1e-9)) for g in groups]  # 0.2 · 20 may be 3.99…

    def start(self, state: TrainingState) -> dict[str, Tensor]:
        """Prune the first channels, and return where weights may be active.

        Raises: InputError when more shall be pruned than the groups can spare.
        """
        masks, channels, floors = state.masks, state.channels, self.floors(state.channels)
        left = budget(channels.total, self.removed)
        if left < sum(floors):
            raise InputError(
                f"channels {self.removed} leaves {left} of {channels.total} channels, where {len(floors)} groups keep"
                f" {sum(floors)} at least: give at most {math.floor(1000 - 1000 * sum(floors) / channels.total) / 1000}"
            )
        if self.restores:
            channels.record(masks)
        for g, count in zip(channels, even_counts(channels, self.first, floors), strict=True):
            g.active = keep_top(g.matrix().abs().sum(0).cpu(), count)
        return channels.growable({w.name: w.weight.shape for w in masks})


@dataclass(frozen=True)
class PruneAndRegrowChannels(Rule):
    """Prune channels to a fraction of the net's, then regrow some of the pruned (CHEX: Hou et al. 2022, Alg. 1).

    The number that each group has, after pruning and after regrowing, follows from one ranking of all active channels
    (``ChannelState.scales``). Which are pruned is decided by leverage. Which return is drawn with the softmax of the
    residual norms of all filters that are not kept, those just pruned among them; every filter is taken as it last was,
    which is our reading. Groups some of whose weights the masks lack, because they are no longer trained, keep their channels.

    Attributes:
        when: the steps at which it acts.
        removed: the fraction of channels that is pruned before the regrowth, to the channel.
        regrown: the fraction of channels that return, by step.
    """

    when: Timetable
    removed: float
    regrown: Schedule
    changes_counts: ClassVar[bool] = True

    def __call__(self, state: TrainingState, step: int) -> dict[str, Tensor]:
        masks, channels = state.masks, state.channels
        channels.record(masks)
        groups = channels.all_of(masks)
        scales, floors = channels.scales(groups), [1] * len(groups)
        fewer = _selected(groups, scales, self.removed, floors)
        more = _selected(groups, scales, self.removed_after(step), floors)
        chosen = [
            self._regrown(g, int(few.sum()), int(many.sum()), channels)
            for g, few, many in zip(groups, fewer, more, strict=True)
        ]
        for g, active in zip(groups, chosen, strict=True):
            g.active = active
        return channels.growable({w.name: w.weight.shape for w in masks})

    @staticmethod
    def _regrown(g: ChannelGroup, kept_count: int, count: int, channels: ChannelState) -> Tensor:
        importance = g.active.double()
        importance[g.active] = leverage(g.matrix()[:, g.active.to(g.writes[0][1].weight.device)], kept_count).cpu()
        kept = keep_top(importance, kept_count, among=g.active)
        full = g.matrix(channels.latest)
        lacking = residuals(full, kept.to(full.device)).cpu()
        return kept | draw(lacking, count - kept_count, among=~kept, generator=g.generator)

    def removed_after(self, step: int) -> float:
        """Return the fraction of channels that is pruned after a step at which it acts."""
        return self.removed - self.regrown(step)

    def counts(self, expected: ExpectedCounts, step: int) -> dict[str, int]:
        """Return the counts when all groups lose the same share of their channels."""
        channels = expected.channels
        return expected.after_pruning(even_counts(channels, self.removed_after(step), [1] * len(channels)))


@dataclass(frozen=True)
class PruneChannels(Rule):
    """Prune the channels with the lowest scores of the whole net for good (Chase: Yin et al. 2023).

    Groups some of whose weights the masks lack, because they are no longer trained, keep their channels.

    Attributes:
        when: the steps at which it acts.
        removed: the fraction of all channels that may be pruned, by step; exact.
        keep: a channel's score, of its filters.
        pruning: says how many a group keeps at least.
    """

    when: Timetable
    removed: Schedule
    keep: FilterScore
    pruning: ChannelPruning

    def __call__(self, state: TrainingState, step: int) -> dict[str, Tensor]:
        masks, channels = state.masks, state.channels
        groups = channels.all_of(masks)
        scores = [finite(self.keep(g.filters()).cpu()).masked_fill(~g.active, float("-inf")) for g in groups]
        chosen = _selected(groups, scores, self.removed(step), self.pruning.floors(groups))
        for g, active in zip(groups, chosen, strict=True):
            g.active = active
        channels.forbid_growth(masks)
        return {w.name: w.mask if w.growable is None else w.mask & w.growable for w in masks}


def even_counts(groups: Sequence[ChannelGroup], removed: float, floors: Sequence[int]) -> list[int]:
    """Return the number of channels that each group has left when all lose the same share."""
    sizes = [g.group.size for g in groups]
    return apportion(max(sum(floors), budget(sum(sizes), removed)), sizes, sizes, floors)


def _selected(
    groups: Sequence[ChannelGroup], scores: Sequence[Tensor], removed: float, floors: Sequence[int]
) -> list[Tensor]:
    """Return what is active of each group when a share of the channels of all is pruned, those with the lowest scores."""
    if not groups:
        return []
    left = budget(sum(g.group.size for g in groups), removed)
    return select_channels(scores, max(left, sum(floors)), floors)
