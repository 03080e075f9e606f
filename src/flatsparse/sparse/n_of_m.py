"""N:M sparsity: patterns of active weights on which hardware is fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flatsparse.common.errors import InputError, check_count
from flatsparse.common.weight_layout import outputs_first
from flatsparse.sparse.distributions import Distribution
from flatsparse.sparse.masked_weight import MaskedWeight
from flatsparse.sparse.scores import Score
from flatsparse.sparse.topk import apportion, keep_top


@dataclass(frozen=True)
class NofM:
    """N:M sparsity: exactly ``active`` of each ``of`` consecutive weights along a layer's inputs are active (Zhou et al. 2021).

    Inputs are input features of a linear layer, and input channels at one position of a convolution's kernel,
    whichever way round a layer stores them; in a layer with groups they are of one group.

    >>> NofM(2, of=4).keep(torch.tensor([[1.0, 3.0, 2.0, 0.0]])).tolist()
    [[False, True, True, False]]
    """

    active: int
    of: int
    size: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_count("the pattern's first number", self.active)
        check_count("the pattern's second number", self.of, minimum=self.active)

    def __str__(self) -> str:
        return f"{self.active}:{self.of}"

    @property
    def sparsity(self) -> float:
        return 1 - self.active / self.of

    def ranked(self, scores: Tensor, layer: str = "weight", inputs_first: int = 0) -> Tensor:
        self.check(outputs_first(scores, inputs_first), layer)
        return scores

    def counts(
        self,
        scores: Mapping[str, Tensor],
        total: int,
        distribution: Distribution,
        most: Mapping[str, int] | None = None,
    ) -> dict[str, int]:
        return {name: s.numel() // self.of * self.active for name, s in scores.items()}

    def best(self, scores: Tensor, count: int, inputs_first: int = 0) -> Tensor:
        return self.keep(scores, inputs_first=inputs_first)

    def moved(self, w: MaskedWeight, fraction: float, drop: Score, grow: Score) -> Tensor:
        """As ``Pattern.moved``; grown is in the groups that lost weights, so that each keeps its count."""
        moved = int(fraction * w.active)
        if moved == 0:
            return w.mask
        kept = keep_top(drop(w), w.active - moved, among=w.mask)
        return self.keep(torch.where(kept, torch.inf, grow(w)), w.name, w.inputs_first)

    def holds(self, mask: Tensor, layer: str = "weight", inputs_first: int = 0) -> bool:
        return torch.equal(self.keep(mask.float(), layer, inputs_first), mask)

    def keep(self, scores: Tensor, layer: str = "weight", inputs_first: int = 0) -> Tensor:
        """Return a mask of the largest scores of each group; ties go to the lower index, NaN ranks lowest.

        Args:
            scores: (outputs, inputs, …), or as ``inputs_first`` says.
            layer: its name, for the error.
            inputs_first: how the layer stores its weight; see ``weight_layout.inputs_first``.

        Raises: InputError when the inputs do not divide into groups.
        """
        self.check(outputs_first(scores, inputs_first), layer)
        return _even(scores, self.of, scores.numel() // self.of * self.active, inputs_first)

    def check(self, scores: Tensor, layer: str) -> None:
        """Raise InputError for scores (outputs, inputs, …) whose inputs do not divide into groups."""
        if scores.shape[1] % self.of:
            raise InputError(
                f"layer '{layer}' has {scores.shape[1]} inputs, which pattern {self} does not divide:"
                " leave it out with exclude="
            )


@dataclass(frozen=True)
class GradualNofM:
    """The way from dense weights to N:M sparsity: any number of active weights, spread evenly over the groups.

    Of c active weights and G groups, each group keeps its c // G largest, and c % G groups keep one more: those whose next
    largest are the largest. Masks that are pruned so, step by step, never bring a weight back, and end at exactly N of each M.
    That N falls while a net trains is of Kao et al. (2022, "sparse structure decay"); counts between whole numbers are ours, so
    that sparsity can follow any schedule.

    Attributes:
        end: the pattern of the last masks, and of the groups of all.

    >>> GradualNofM(NofM(1, of=2)).best(torch.tensor([[1.0, 3.0, 4.0, 2.0]]), count=3).tolist()
    [[False, True, True, True]]
    """

    end: NofM
    sparsity: ClassVar[float | None] = None
    size: ClassVar[int] = 1

    def __str__(self) -> str:
        return str(self.end)

    def ranked(self, scores: Tensor, layer: str = "weight", inputs_first: int = 0) -> Tensor:
        return self.end.ranked(scores, layer, inputs_first)

    def counts(
        self,
        scores: Mapping[str, Tensor],
        total: int,
        distribution: Distribution,
        most: Mapping[str, int] | None = None,
    ) -> dict[str, int]:
        """As ``Pattern.counts``; every layer is as sparse as the others, and no sparser than at the end."""
        sizes = [s.numel() for s in scores.values()]
        caps = sizes if most is None else [most[name] for name in scores]
        floors = [min(size // self.end.of * self.end.active, cap) for size, cap in zip(sizes, caps, strict=True)]
        counts = apportion(min(max(total, sum(floors)), sum(caps)), sizes, caps, floors)
        return dict(zip(scores, counts, strict=True))

    def best(self, scores: Tensor, count: int, inputs_first: int = 0) -> Tensor:
        return _even(scores, self.end.of, count, inputs_first)

    def moved(self, w: MaskedWeight, fraction: float, drop: Score, grow: Score) -> Tensor:
        """As ``Pattern.moved``; grown is where it leaves the groups even."""
        moved = int(fraction * w.active)
        if moved == 0:
            return w.mask
        kept = keep_top(drop(w), w.active - moved, among=w.mask)
        return self.best(torch.where(kept, torch.inf, grow(w)), w.active, w.inputs_first)

    def holds(self, mask: Tensor, layer: str = "weight", inputs_first: int = 0) -> bool:
        """As ``Pattern.holds``: each group has N active weights or more, and one more at most than any other."""
        self.ranked(mask, layer, inputs_first)
        active = _groups(mask, self.end.of, inputs_first).sum(-1)
        return bool(active.min() >= self.end.active) and bool(active.max() - active.min() <= 1)


def _even(scores: Tensor, of: int, count: int, inputs_first: int) -> Tensor:
    """Return a mask of so many of a layer's scores, the largest of each group, spread evenly over the groups.

    Where groups cannot all have as many, those whose next largest are the largest have one more. Ties go to the lower index,
    NaN ranks lowest.
    """
    groups = _groups(scores, of, inputs_first)
    every, more = divmod(count, groups.numel() // of)
    order = torch.where(groups.isnan(), -torch.inf, groups).argsort(dim=-1, descending=True, stable=True)
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., :every], True)
    if more:
        following = order[..., every : every + 1]
        kept.scatter_(-1, following, keep_top(groups.gather(-1, following), more))
    return outputs_first(kept.movedim(-1, 2).flatten(1, 2), inputs_first)


def _groups(scores: Tensor, of: int, inputs_first: int) -> Tensor:
    """A layer's scores, (outputs, groups of inputs, …, M), in which groups come in the order of their first entries."""
    return outputs_first(scores, inputs_first).unflatten(1, (-1, of)).movedim(2, -1)
