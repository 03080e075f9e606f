"""Weights outside the masks that keep their values: copied before an optimizer's step, and written back after it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from flatsparse.common.distributed import local_tensor
from flatsparse.sam.state_entry import PERTURBED
from flatsparse.sparse.masked_weight import MaskedWeight
from flatsparse.sparse.optimizer_state import begin_outside, reaches_outside


class FrozenOutside:
    """The values outside the masks that no step of an optimizer may change, bit for bit.

    Ours: gradients are zero there, but weight decay, and optimizers that mix entries, move weights all the same. So the weights
    are copied before each step, which costs one parameter-sized buffer during it (and until the next, of an optimizer that may
    write after its parent's step: any that is not known to be element by element). Between steps they are the user's: what is
    loaded or written then is what stays. A step that was interrupted is made good by the next.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._kept: list[tuple[MaskedWeight, Tensor]] = []
        self._in_step = False

    @torch.no_grad()
    def begin(self, weights: Iterable[MaskedWeight]) -> None:
        """Copy the weights before a step; within one, or after one that never ended, write them back."""
        if self._in_step:  # a subclass whose parent's step is a step too
            self.write_back()
        else:
            self.keep(weights)
            self._in_step = True

    @torch.no_grad()
    def keep(self, weights: Iterable[MaskedWeight]) -> None:
        """Copy the weights as they are now."""
        self._kept = [(w, local_tensor(w.weight.detach()).clone()) for w in weights if w.active < w.size]

    @torch.no_grad()
    def write_back(self) -> None:
        """Write the kept values back outside the masks."""
        for w, kept in self._kept:
            weight = local_tensor(w.weight.detach())
            if w.mask.get_device() != weight.get_device():  # the model was moved after it was made sparse
                w.mask = w.mask.to(weight.device)
            torch.where(local_tensor(w.mask), weight, kept.to(weight), out=weight)

    def reset_state(self, *, before_update: bool) -> None:
        """Let the optimizer's state outside the masks be a new one's, where the step or masks that change reach it.

        Perturbed weights are left: they are made anew after the step.
        """
        if before_update or reaches_outside(self._optimizer):
            begin_outside((w for w, _ in self._kept), self._optimizer, leave=PERTURBED)

    def end(self) -> None:
        """Forget the values: the step is over, or others were loaded."""
        self._kept, self._in_step = [], False
