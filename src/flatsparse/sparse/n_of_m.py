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
from flatsparse.sparse.topk import keep_top


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
        self._check(outputs_first(scores, inputs_first), layer)
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
        scores = outputs_first(scores, inputs_first)
        self._check(scores, layer)
        groups = scores.movedim(1, -1)
        ranked = torch.where(groups.isnan(), -torch.inf, groups).reshape(-1, self.of)
        best = ranked.argsort(dim=1, descending=True, stable=True)[:, : self.active]
        kept = torch.zeros_like(ranked, dtype=torch.bool).scatter_(1, best, True)
        return outputs_first(kept.view(groups.shape).movedim(-1, 1), inputs_first)

    def _check(self, scores: Tensor, layer: str) -> None:
        if scores.shape[1] % self.of:
            raise InputError(
                f"layer '{layer}' has {scores.shape[1]} inputs, which pattern {self} does not divide:"
                " leave it out with exclude="
            )
