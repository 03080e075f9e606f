"""N:M sparsity: patterns of active weights on which hardware is fast."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flatsparse.common.errors import InputError, check_count
from flatsparse.common.weight_layout import outputs_first


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

    def __post_init__(self) -> None:
        check_count("the pattern's first number", self.active)
        check_count("the pattern's second number", self.of, minimum=self.active)

    @property
    def sparsity(self) -> float:
        return 1 - self.active / self.of

    @classmethod
    def of_pair(cls, pair: tuple[int, int] | None, sparsity: float) -> NofM | None:
        """Return the pattern that a method's option names; none for None. Raises InputError for one of another sparsity."""
        if pair is None:
            return None
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise InputError(
                f"pattern {pair!r} is not usable: give two whole numbers, such as (2, 4) for 2 active of each 4"
            )
        pattern = cls(*pair)
        if abs(sparsity - pattern.sparsity) > 1e-9:
            given, own = f"{sparsity:g}", f"{pattern.sparsity:g}"
            raise InputError(f"pattern {pattern.active}:{pattern.of} is {own} sparse, not {given}: give sparsity={own}")
        return pattern

    def keep(self, scores: Tensor, layer: str = "weight", inputs_first: int = 0) -> Tensor:
        """Return a mask of the largest scores of each group; ties go to the lower index, NaN ranks lowest.

        Args:
            scores: (outputs, inputs, …), or as ``inputs_first`` says.
            layer: its name, for the error.
            inputs_first: how the layer stores its weight; see ``layers.inputs_first``.

        Raises: InputError when the inputs do not divide into groups.
        """
        scores = outputs_first(scores, inputs_first)
        if scores.shape[1] % self.of:
            raise InputError(
                f"layer '{layer}' has {scores.shape[1]} inputs, which pattern {self.active}:{self.of} does not divide:"
                " leave it out with exclude="
            )
        groups = scores.movedim(1, -1)
        ranked = torch.where(groups.isnan(), -torch.inf, groups).reshape(-1, self.of)
        best = ranked.argsort(dim=1, descending=True, stable=True)[:, : self.active]
        kept = torch.zeros_like(ranked, dtype=torch.bool).scatter_(1, best, True)
        return outputs_first(kept.view(groups.shape).movedim(-1, 1), inputs_first)

    def regrow(self, kept: Tensor, grow: Tensor, layer: str, inputs_first: int = 0) -> Tensor:
        """Return a mask of what is kept, and in each group of as many of the largest scores as are missing."""
        return self.keep(torch.where(kept, torch.inf, grow), layer, inputs_first)
