"""Copies of weights that were zeroed outside masks that may not be theirs, and warnings of what was lost."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from torch import Tensor
from torch.optim import Optimizer

from flatsparse.common.distributed import full_tensor
from flatsparse.sparse.masked_weight import MaskedWeight

AT_THE_STEP = 11  # frames up from a warning here to the line that calls the optimizer's step
AT_THE_CALL = 6  # … to the line that calls a layer


class ZeroedWeights:
    """Copies of weights from before they were zeroed outside masks that may not be theirs, until the first step."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}
        self._state: dict[str, dict[str, Tensor]] = {}  # of the optimizer, by layer and key
        self._lost: dict[str, int] = {}  # how many weights, of a net that looks sparse by other masks
        self._spared: dict[str, int] = {}  # how many of them are not, because the masks have moved there

    def keep(self, weights: Iterable[MaskedWeight], *, may_be_dense: bool = False) -> None:
        """Copy weights, which are about to be zeroed.

        Args:
            may_be_dense: a weight with fewer zeros than its mask is no sign of a loss, as when a dense net is made sparse.
        """
        for w in weights:
            if w.keeps_outside:
                continue
            self._kept[w.name] = w.weight.detach().clone()
            nonzero = w.weight.detach().ne(0)
            looks_sparse = w.size - int(full_tensor(nonzero.sum())) >= w.size - w.active
            lost = int(full_tensor((nonzero & ~w.mask).sum())) if looks_sparse or not may_be_dense else 0
            self._lost[w.name] = lost

    def losing(self, weights: Iterable[MaskedWeight]) -> list[MaskedWeight]:
        """Return those that are about to be zeroed where they are not zero."""
        return [w for w in weights if self._lost.get(w.name, 0)]

    def spare(self, w: MaskedWeight) -> None:
        """Take note that a weight loses nothing, because its mask has moved."""
        self._spared[w.name] = self._lost.pop(w.name)

    def keep_state(self, weights: Iterable[MaskedWeight], optimizer: Optimizer) -> None:
        """Copy what an optimizer keeps for weights, unless that was copied before they were first zeroed."""
        for w in weights:
            if w.name in self._state:
                continue
            entry = optimizer.state.get(w.weight, {})
            alike = {k: v.clone() for k, v in entry.items() if isinstance(v, Tensor) and v.shape == w.weight.shape}
            self._state[w.name] = alike

    def forget_state(self) -> None:
        """Forget the optimizer's state, because it has loaded another."""
        self._state = {}

    def give_back(self, w: MaskedWeight, optimizer: Optimizer) -> None:
        """Put a weight and its state back as they were, if nothing has written to it since; its mask has changed."""
        if w.name in self._kept and w.is_as_recorded:
            w.weight.copy_(self._kept[w.name])
        for key, value in self._state.get(w.name, {}).items():
            if key in optimizer.state.get(w.weight, {}):
                optimizer.state[w.weight][key].copy_(value)
        self._lost.pop(w.name, None)
        self._spared.pop(w.name, None)

    def forget(self) -> None:
        """Forget everything before a step, with a warning if weights were lost."""
        self.warn_of_lost(AT_THE_STEP + 1)
        if moved := sum(self._spared.values()):
            warnings.warn(
                f"{moved} loaded weights that are not zero lay outside the masks, which have moved there: to continue a sparse"
                " training, load its training.state_dict() as well, or the state of its optimizer, which holds the masks",
                stacklevel=AT_THE_STEP,
            )
        self._kept, self._state, self._spared = {}, {}, {}

    def warn_of_lost(self, stacklevel: int) -> None:
        """Warn once of the weights that were lost."""
        lost, self._lost = sum(self._lost.values()), {}
        if lost:
            self._spared = {}
            warnings.warn(
                f"{lost} loaded weights that are not zero lie outside the masks and were set to 0: to continue a sparse"
                " training, load its training.state_dict() as well, or the state of its optimizer, which holds the masks;"
                " to keep a net as others pruned it, give sparsify masks=flatsparse.masks_from(model); to evaluate what was"
                " loaded, call training.detach() before",
                stacklevel=stacklevel,
            )

    def __bool__(self) -> bool:
        return bool(self._kept)
