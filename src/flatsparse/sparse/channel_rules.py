"""Rules that remove whole channels, for good or until they are drawn again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flatsparse.common.errors import InputError, check_fraction
from flatsparse.schedules import Schedule, Timetable
from flatsparse.sparse.channel_choice import Eligible, removable
from flatsparse.sparse.channel_scores import FilterScore, drawn, finite, leverage, ranked_channels, residuals
from flatsparse.sparse.channel_state import Explored, Widths
from flatsparse.sparse.masks import Masks
from flatsparse.sparse.topk import apportion, budget, keep_top


@dataclass(frozen=True)
class Thinning:
    """What a plan does to channels.

    Attributes:
        removed: the fraction of all channels that may be removed which is at the end, to the channel.
        first: the same at the start, of every group alike; the filters with the smallest L1 norm go.
        least: the share of a group's channels that always stay, rounded down, but one at least.
        eligible: which channels may be removed.
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

    def floors(self, groups: Sequence[Explored]) -> list[int]:
        """The fewest channels that each group keeps."""
        return [max(1, math.floor(self.least * g.group.size + 1e-9)) for g in groups]  # 0.2 · 20 may be 3.99…

    def start(self, masks: Masks) -> dict[str, Tensor]:
        """Remove the first channels, and say where weights may be live.

        Raises: InputError when more shall be removed than the groups can spare.
        """
        widths = masks.widths
        assert widths is not None
        left, sizes, floors = budget(widths.total, self.removed), [g.group.size for g in widths], self.floors(widths)
        if left < sum(floors):
            raise InputError(
                f"channels {self.removed} leaves {left} of {widths.total} channels, where {len(sizes)} groups keep"
                f" {sum(floors)} at least: give at most {math.floor(1000 - 1000 * sum(floors) / widths.total) / 1000}"
            )
        if self.restores:
            widths.note(masks)
        counts = self.alike(widths, self.first)
        for g, count in zip(widths, counts, strict=True):
            g.live = keep_top(g.matrix().abs().sum(0).cpu(), count)
        return widths.masks({w.name: w.weight.shape for w in masks})

    def alike(self, widths: Widths, removed: float) -> list[int]:
        """How many channels each group has left when all lose the same share."""
        sizes, floors = [g.group.size for g in widths], self.floors(widths)
        return apportion(max(sum(floors), budget(widths.total, removed)), sizes, sizes, floors)


@dataclass(frozen=True)
class Explore:
    """Remove channels down to a fraction of the net's, then bring some of the removed back (CHEX: Hou et al. 2022, Alg. 1).

    How many each group has, after removing and after regrowing, follows from one ranking of all channels that are live
    (``Widths.scales``). Which go is decided by leverage. Which return is drawn with the softmax of the residual norms of
    all filters that are not kept, those just removed among them; every filter is taken as it last was, which is our reading.
    Groups some of whose weights the masks lack, because they are no longer trained, keep their channels.

    Attributes:
        when: at which steps.
        removed: the fraction of channels that is removed before the regrowth, to the channel.
        regrown: the fraction of channels that return, by step.
    """

    when: Timetable
    removed: float
    regrown: Schedule
    weight_step: ClassVar[bool] = True
    dense_gradient: ClassVar[bool] = False

    def __call__(self, masks: Masks, step: int) -> dict[str, Tensor]:
        widths = masks.widths
        assert widths is not None
        assert widths.latest is not None
        widths.note(masks)
        groups = widths.among(masks)
        scales, floors = widths.scales(groups), [1] * len(groups)
        fewer = _ranked(groups, scales, self.removed, floors)
        more = _ranked(groups, scales, self.removed_by(step), floors)
        chosen = [
            self._explored(g, int(few.sum()), int(many.sum()), widths)
            for g, few, many in zip(groups, fewer, more, strict=True)
        ]
        for g, live in zip(groups, chosen, strict=True):
            g.live = live
        return widths.masks({w.name: w.weight.shape for w in masks})

    @staticmethod
    def _explored(g: Explored, kept_count: int, count: int, widths: Widths) -> Tensor:
        importance = g.live.double()
        importance[g.live] = leverage(g.matrix()[:, g.live.to(g.writes[0][1].weight.device)], kept_count).cpu()
        kept = keep_top(importance, kept_count, among=g.live)
        full = g.matrix(widths.latest)
        lacking = residuals(full, kept.to(full.device)).cpu()
        return kept | drawn(lacking, count - kept_count, among=~kept, generator=g.generator)

    def removed_by(self, step: int) -> float:
        """The fraction of channels that is removed after a step that acts."""
        return self.removed - self.regrown(step)


@dataclass(frozen=True)
class RemoveChannels:
    """Remove the channels with the lowest scores of the whole net for good (Chase: Yin et al. 2023).

    Groups some of whose weights the masks lack, because they are no longer trained, keep their channels.

    Attributes:
        when: at which steps.
        removed: the fraction of all channels that may be removed, by step; exact.
        keep: a channel's score, of its filters.
        thinning: says how many a group keeps at least.
    """

    when: Timetable
    removed: Schedule
    keep: FilterScore
    thinning: Thinning
    weight_step: ClassVar[bool] = True
    dense_gradient: ClassVar[bool] = False

    def __call__(self, masks: Masks, step: int) -> dict[str, Tensor]:
        widths = masks.widths
        assert widths is not None
        groups = widths.among(masks)
        scores = [finite(self.keep(g.filters()).cpu()).masked_fill(~g.live, float("-inf")) for g in groups]
        lives = _ranked(groups, scores, self.removed(step), self.thinning.floors(groups))
        for g, live in zip(groups, lives, strict=True):
            g.live = live
        widths.confine(masks)
        return {w.name: w.mask if w.room is None else w.mask & w.room for w in masks}


def _ranked(
    groups: Sequence[Explored], scores: Sequence[Tensor], removed: float, floors: Sequence[int]
) -> list[Tensor]:
    """What is live of each group when a share of the channels of all is removed, those with the lowest scores."""
    if not groups:
        return []
    left = budget(sum(g.group.size for g in groups), removed)
    return ranked_channels(scores, max(left, sum(floors)), floors)
