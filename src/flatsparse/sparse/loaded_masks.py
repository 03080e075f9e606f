"""Masks that move to weights that were loaded without any: those of another step of the same run, such as its best."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from flatsparse.common.distributed import full_tensor
from flatsparse.sparse.masked_weight import MaskedWeight
from flatsparse.sparse.optimizer_state import begin_outside
from flatsparse.sparse.pattern import Pattern
from flatsparse.sparse.zeroed_weights import AT_THE_STEP, copied_state, restore_state


@dataclass(frozen=True)
class _Before:
    """A mask and the optimizer's state of its weight, from before the mask moved to loaded weights."""

    mask: Tensor
    state: Mapping[str, Tensor]


class MovedMasks:
    """The masks that have moved to loaded weights since the last step.

    Ours, because trainers load the weights of their best step and no masks, and the masks have moved since. If the former
    weights are loaded again before a step, their masks and state are back.

    Args:
        pattern: that masks keep to; None for masks that stay whatever is loaded.
        optimizer: whose state of a weight begins anew outside its mask.
    """

    def __init__(self, pattern: Pattern | None, optimizer: Optimizer) -> None:
        self._pattern = pattern
        self._optimizer = optimizer
        self._before: dict[str, _Before] = {}
        self._outside: dict[str, int] = {}  # how many loaded weights lay outside the mask

    def follow(self, weights: Iterable[MaskedWeight]) -> list[MaskedWeight]:
        """Move the masks of weights that have just been loaded, and return those weights. All processes must call it."""
        if self._pattern is None:
            return []
        return [w for w in weights if not w.keeps_outside and (self._goes_back(w) or self._moves(w, self._pattern))]

    def _goes_back(self, w: MaskedWeight) -> bool:
        before = self._before.get(w.name)
        if before is None or _outside(w, before.mask):
            return False
        w.set_mask(full_tensor(before.mask))
        self.undo(w)
        return True

    def _moves(self, w: MaskedWeight, pattern: Pattern) -> bool:
        outside = _outside(w, w.mask)
        mask = mask_around(w, pattern) if outside else None
        if mask is None:
            return False
        if w.name not in self._before:
            self._before[w.name] = _Before(w.mask.clone(), copied_state(w, self._optimizer))
        self._outside[w.name] = outside
        w.set_mask(mask)
        w.apply_to_gradient()
        begin_outside([w], self._optimizer)
        return True

    def undo(self, w: MaskedWeight) -> None:
        """Put back the state of a weight that has another mask again, if that had moved."""
        if (before := self._before.pop(w.name, None)) is not None:
            restore_state(w, self._optimizer, before.state)
            del self._outside[w.name]

    def forget_state(self) -> None:
        """Forget the optimizer's state, because it has loaded another."""
        self._before = {name: _Before(before.mask, {}) for name, before in self._before.items()}

    def settle(self, weights: Iterable[MaskedWeight]) -> dict[str, Tensor]:
        """Forget what was before, with a warning, and return where weights have become active, by name."""
        if not self._before:
            return {}
        before, self._before = self._before, {}
        outside, self._outside = sum(self._outside.values()), {}
        if outside:
            warnings.warn(
                f"{outside} loaded weights that are not zero lay outside the masks, which have moved there: to continue a"
                " sparse training, load its training.state_dict() as well, or the state of its optimizer, which holds the masks",
                stacklevel=AT_THE_STEP,
            )
        return {w.name: w.mask & ~before[w.name].mask.to(w.mask.device) for w in weights if w.name in before}


def mask_around(w: MaskedWeight, pattern: Pattern) -> Tensor | None:
    """Return a mask that is as dense as a weight's own, holds all of its nonzero entries and keeps to a pattern.

    What nonzero entries leave free goes to entries of the weight's own mask, for some active weights are zero: those that
    have just grown.

    Returns: bool, the whole weight's shape; None where there is no such mask, as for a dense weight. All processes must call it.

    >>> from flatsparse.sparse.pattern import UNSTRUCTURED
    >>> w = MaskedWeight("weight", torch.nn.Parameter(torch.tensor([[1.0, 0.0], [2.0, 0.0]])), 0)
    >>> _ = w.set_mask(torch.tensor([[False, True], [True, True]]))
    >>> mask_around(w, UNSTRUCTURED)
    tensor([[ True,  True],
            [ True, False]])
    """
    nonzero, own = full_tensor(w.weight.detach().ne(0)), full_tensor(w.mask)
    if int(nonzero.sum()) > w.active:
        return None
    first = 2.0 * pattern.size  # more than all of a block that has but entries of the mask
    scores = torch.where(nonzero, first, own.to(nonzero.device, torch.float32))
    mask = pattern.best(pattern.ranked(scores, w.name, w.inputs_first), w.active, w.inputs_first)
    return None if bool((nonzero & ~mask).any()) else mask


def _outside(w: MaskedWeight, mask: Tensor) -> int:
    """Return how many entries of a weight are not zero outside a mask."""
    return int(full_tensor((w.weight.detach().ne(0) & ~mask.to(w.weight.device)).sum()))
