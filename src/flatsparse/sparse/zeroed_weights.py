"""Copies of weights that were zeroed outside masks that may not be theirs, and warnings of what was lost."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

from torch import Tensor
from torch.optim import Optimizer

from flatsparse.common.distributed import full_tensor
from flatsparse.sparse.masked_weight import MaskedWeight

AT_THE_STEP = 11  # frames up from a warning here to the line that calls the optimizer's step
PRUNED = 0.1  # from this share of zeros on a weight looks pruned
AT_THE_CALL = 6  # … to the line that calls a layer
AT_THE_LOAD = 8  # … to the line that loads a Sequential, and near it for other nestings


class ZeroedWeights:
    """Copies of weights from before they were zeroed outside masks that may not be theirs, until the first step."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}
        self._state: dict[str, dict[str, Tensor]] = {}  # of the optimizer, by layer and key
        self._lost: dict[str, int] = {}  # how many weights, of a net that looks sparse by other masks
        self._woken: dict[
            str, int
        ] = {}  # how many zeros, of a net that looks pruned, are inside masks that were chosen anew

    def keep(self, weights: Iterable[MaskedWeight], *, may_be_dense: bool = False) -> None:
        """Copy weights, which are about to be zeroed; a copy of a weight that nothing has written to since then stays.

        Args:
            may_be_dense: a weight with fewer zeros than its mask is no sign of a loss, as when a dense net is made sparse.
        """
        for w in weights:
            if w.keeps_outside or (w.name in self._kept and w.is_as_recorded):  # loads in parts call every layer's hook
                continue
            self._kept[w.name] = w.weight.detach().clone()
            nonzero = w.weight.detach().ne(0)
            looks_sparse = w.size - int(full_tensor(nonzero.sum())) >= w.size - w.active
            lost = int(full_tensor((nonzero & ~w.mask).sum())) if looks_sparse or not may_be_dense else 0
            self._lost[w.name] = lost
            self._woken.pop(w.name, None)

    def note_woken(self, weights: Iterable[MaskedWeight]) -> None:
        """Count the zeros inside new masks of weights that look pruned. A weight of zeros alone was made so."""
        for w in weights:
            zero = w.weight.detach().eq(0)
            count = int(full_tensor(zero.sum()))
            if PRUNED * w.size <= count < w.size:
                self._woken[w.name] = int(full_tensor((zero & w.mask).sum()))

    def spare(self, w: MaskedWeight) -> None:
        """Take note that a weight loses nothing, because its mask has moved."""
        self._lost.pop(w.name, None)

    def keep_state(self, weights: Iterable[MaskedWeight], optimizer: Optimizer) -> None:
        """Copy what an optimizer keeps for weights."""
        for w in weights:
            self._state[w.name] = copied_state(w, optimizer)

    def forget_state(self) -> None:
        """Forget the optimizer's state, because it has loaded another."""
        self._state = {}

    def give_back(self, w: MaskedWeight, optimizer: Optimizer) -> None:
        """Put a weight and its state back as they were, if nothing has written to it since; its mask has changed."""
        if w.name in self._kept and w.is_as_recorded:
            w.weight.copy_(self._kept[w.name])
        restore_state(w, optimizer, self._state.get(w.name, {}))
        self._lost.pop(w.name, None)
        self._woken.pop(w.name, None)

    def forget(self) -> None:
        """Forget everything before a step, with a warning if weights were lost."""
        woken = 0 if any(self._lost.values()) else sum(self._woken.values())  # one warning names the cure of both
        self.warn_of_lost(AT_THE_STEP + 1)
        if woken:
            warnings.warn(
                f"{woken} weights that were zero when the model was made sparse are inside its masks, and are trained: if"
                " the model was pruned, give sparsify masks=flatsparse.masks_from(model), in the place of a sparsity",
                stacklevel=AT_THE_STEP,
            )
        self._kept, self._state, self._woken = {}, {}, {}

    def have_lost(self, weights: Iterable[MaskedWeight]) -> bool:
        """Return whether any of these weights has been zeroed where it was not zero."""
        return any(self._lost.get(w.name) for w in weights)

    def warn_of_lost(self, stacklevel: int) -> None:
        """Warn once of the weights that were lost."""
        lost, self._lost = sum(self._lost.values()), {}
        if lost:
            warnings.warn(
                f"{lost} loaded weights that are not zero lie outside the masks and were set to 0: to continue a sparse"
                " training, load its training.state_dict() as well, or the state of its optimizer, which holds the masks;"
                " to keep a net as others pruned it, give sparsify masks=flatsparse.masks_from(model); to evaluate what was"
                " loaded, call training.detach() before",
                stacklevel=stacklevel,
            )

    def __bool__(self) -> bool:
        return bool(self._kept)


def copied_state(w: MaskedWeight, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return copies of what an optimizer keeps for each entry of a weight, by its keys."""
    entry = optimizer.state.get(w.weight, {})
    return {k: v.clone() for k, v in entry.items() if isinstance(v, Tensor) and v.shape == w.weight.shape}


def restore_state(w: MaskedWeight, optimizer: Optimizer, copies: Mapping[str, Tensor]) -> None:
    """Write copies into what an optimizer keeps for a weight, where it still keeps that."""
    entry = optimizer.state.get(w.weight, {})
    for key, value in copies.items():
        if key in entry:
            entry[key].copy_(value)
