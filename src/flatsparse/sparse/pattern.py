"""Patterns: what the masks of a run keep to besides their counts, and the methods' option that names one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from flatsparse.common.errors import InputError
from flatsparse.sparse.block import Block
from flatsparse.sparse.distributions import Distribution
from flatsparse.sparse.masked_weight import MaskedWeight
from flatsparse.sparse.n_of_m import NofM
from flatsparse.sparse.scores import Score
from flatsparse.sparse.topk import apportion, keep_top


@runtime_checkable
class Pattern(Protocol):
    """A way for masks to be regular. ``Unstructured``, ``NofM`` and ``Block`` are patterns."""

    @property
    def sparsity(self) -> float | None:
        """The sparsity of every mask; None where it may be any."""
        ...

    @property
    def size(self) -> int:
        """The number of weights that are active or pruned together."""
        ...

    def ranked(self, scores: Tensor, layer: str = "weight", inputs_first: int = 0) -> Tensor:
        """Return the scores by which single weights are ranked, of the same shape.

        Args:
            scores: (outputs, inputs, …), or as ``inputs_first`` says.
            layer: its name, for the error.
            inputs_first: how the layer stores its weight; see ``weight_layout.inputs_first``.

        Raises: InputError when the pattern does not divide the layer.
        """
        ...

    def counts(
        self,
        scores: Mapping[str, Tensor],
        total: int,
        distribution: Distribution,
        most: Mapping[str, int] | None = None,
    ) -> dict[str, int]:
        """Return how many weights of each layer are active, as near to a total as the pattern allows.

        Args:
            scores: as ``ranked`` gives them, by layer.
            total: of all layers.
            distribution: allocates it to the layers.
            most: that each layer may have; all of its weights by default.
        """
        ...

    def best(self, scores: Tensor, count: int, inputs_first: int = 0) -> Tensor:
        """Return a mask of a layer's largest scores; ties go to the lower index, NaN ranks lowest.

        Args:
            scores: as ``ranked`` gives them.
            count: of active weights, as ``counts`` gives it.
            inputs_first: as for ``ranked``.
        """
        ...

    def moved(self, w: MaskedWeight, fraction: float, drop: Score, grow: Score) -> Tensor:
        """Return a mask with a fraction of the active weights dropped, the lowest by one score, and as many grown by another."""
        ...

    def holds(self, mask: Tensor, layer: str = "weight", inputs_first: int = 0) -> bool:
        """Return whether a mask keeps to the pattern. Raises: InputError when it does not divide the layer."""
        ...


PatternOption = Pattern | tuple[int, int] | str | None  # what methods take


@dataclass(frozen=True)
class Unstructured:
    """No pattern: each weight by itself."""

    sparsity: ClassVar[float | None] = None
    size: ClassVar[int] = 1

    def ranked(self, scores: Tensor, layer: str = "weight", inputs_first: int = 0) -> Tensor:
        return scores

    def counts(
        self,
        scores: Mapping[str, Tensor],
        total: int,
        distribution: Distribution,
        most: Mapping[str, int] | None = None,
    ) -> dict[str, int]:
        shares = distribution(scores, total)
        if most is None:
            return shares
        # Rounding can give a layer one more than it may have, which another layer has then.
        counts = apportion(total, list(shares.values()), list(most.values()), [min(1, n) for n in most.values()])
        return dict(zip(scores, counts, strict=True))

    def best(self, scores: Tensor, count: int, inputs_first: int = 0) -> Tensor:
        return keep_top(scores, count)

    def moved(self, w: MaskedWeight, fraction: float, drop: Score, grow: Score) -> Tensor:
        moved = int(fraction * w.active)
        if moved == 0:
            return w.mask
        kept = keep_top(drop(w), w.active - moved, among=w.mask)
        among = ~kept if w.growable is None else ~kept & w.growable.to(kept.device)
        return kept | keep_top(grow(w), moved, among=among)

    def holds(self, mask: Tensor, layer: str = "weight", inputs_first: int = 0) -> bool:
        return True


UNSTRUCTURED = Unstructured()


def pattern_of(option: PatternOption, sparsity: float) -> Pattern:
    """Return the pattern that a method's option names, for a run that ends at a sparsity.

    Args:
        option: a pattern; a pair (N, M) or text ``N:M`` for N active weights of each M; text ``block:RxC``; or none.

    Raises: InputError for anything else, and for a pattern of another sparsity.

    >>> pattern_of("block:16x1", 0.9), pattern_of((2, 4), 0.5)
    (Block(outputs=16, inputs=1), NofM(active=2, of=4))
    """
    pattern = _named(option)
    if pattern.sparsity is not None and abs(sparsity - pattern.sparsity) > 1e-9:
        given, own = f"{sparsity:g}", f"{pattern.sparsity:g}"
        raise InputError(f"pattern {pattern} is {own} sparse, not {given}: give sparsity={own}")
    return pattern


def _named(option: PatternOption) -> Pattern:
    if option is None:
        return UNSTRUCTURED
    if isinstance(option, (tuple, list)) and len(option) == 2:
        return NofM(*option)
    if isinstance(option, str):
        if pair := re.fullmatch(r"(\d+):(\d+)", option):
            return NofM(int(pair[1]), int(pair[2]))
        if sides := re.fullmatch(r"block:(\d+)x(\d+)", option):
            return Block(int(sides[1]), int(sides[2]))
    elif isinstance(option, Pattern) and not isinstance(option, type):
        return option
    raise InputError(
        f"pattern {option!r} is not usable: give (2, 4) or '2:4' for 2 active of each 4, or flatsparse.Block(16, 1) or"
        " 'block:16x1' for whole blocks of 16 outputs and 1 input"
    )
