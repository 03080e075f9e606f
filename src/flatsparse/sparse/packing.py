"""Packed weights: parameters that hold their active entries alone, and with them their gradients and the optimizer's state.

Between mask updates a sparse weight needs no room for zeros. The parameter stays the same object in model and optimizer;
its content is n entries instead of the mask's shape, and so is all state that has the weight's shape: momentum, Adam's
moments, S²-SAM's perturbed weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatsparse.common.optimizers import PackAware, chain, innermost, mask_aware
from flatsparse.sparse.masked_weight import MaskedWeight, record
from flatsparse.sparse.optimizer_state import ELEMENTWISE, begin_outside

Wanted = Callable[[MaskedWeight], bool]


class Packing:
    """The weights that are packed at this moment, and the way back.

    Args:
        optimizer: the outermost, of the training's chain.

    Attributes:
        wanted: tells of a weight whether to pack it; None packs none.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.wanted: Wanted | None = None
        self._optimizer = optimizer
        self._base = innermost(optimizer)
        self._packed: list[MaskedWeight] = []

    @property
    def is_possible(self) -> bool:
        """Whether the optimizers treat every entry by itself, and keep all they know of one in their state."""
        wrappers = list(chain(self._optimizer))[:-1]
        fit = all(isinstance(wrapper, PackAware) and wrapper.is_packable() for wrapper in wrappers)
        return fit and type(self._base) in ELEMENTWISE

    @torch.inference_mode(False)  # a copy may be made in inference mode, whose tensors could not be trained
    @torch.no_grad()
    def pack(self, weights: Iterable[MaskedWeight]) -> None:
        """Pack those of some weights that are wanted, after a step."""
        if self.wanted is None or not self.is_possible:
            return
        new = [
            w for w in weights if not w.is_packed and w.is_as_recorded and w.weight.is_contiguous() and self.wanted(w)
        ]
        with self._rearranging(new):
            for w in new:
                _rearrange(w.weight, self._base.state.get(w.weight, {}), _gather(w))
        self._packed += new

    @torch.inference_mode(False)
    @torch.no_grad()
    def unpack(self, *, closing: bool = True) -> None:
        """Let all weights have the shape of their masks again.

        Args:
            closing: put the true weights in place where weights are perturbed; else nothing is done then.
        """
        if not self._packed or (not closing and any(getattr(o, "is_perturbed", False) for o in chain(self._optimizer))):
            return
        packed, self._packed = self._packed, []
        for wrapper in mask_aware(self._optimizer):
            with wrapper.disabled():
                pass
        with self._rearranging(packed):
            for w in packed:
                # Once the parameter has another shape, ``whole`` can no longer tell that something has the one before.
                _rearrange(w.weight, self._base.state.get(w.weight, {}), _spread(w.mask))
            begin_outside(packed, self._base)

    @contextmanager
    def _rearranging(self, weights: list[MaskedWeight]) -> Iterator[None]:
        if not weights:
            yield
            return
        with ExitStack() as wrappers:
            for wrapper in mask_aware(self._optimizer):
                if isinstance(wrapper, PackAware):
                    wrappers.enter_context(wrapper.rearranging())
            yield
        record(weights)


def _gather(w: MaskedWeight) -> Callable[[Tensor], Tensor]:
    indices, shape = w.indices, packed_shape(w.mask, w.active)
    return lambda whole: whole.reshape(-1)[indices].view(shape)


def packed_shape(mask: Tensor, active: int) -> tuple[int, ...]:
    """Return the shape of packed entries: one dimension more than the mask has, all but one of size 1.

    So nothing in place takes them for whole ones; and because that one moves on when the mask is written to, hardly anything
    takes them for those of another mask, of which there may be as many.
    """
    shape = [1] * (mask.ndim + 1)
    shape[mask._version % len(shape)] = active
    return tuple(shape)


def _spread(mask: Tensor) -> Callable[[Tensor], Tensor]:
    def spread(values: Tensor) -> Tensor:
        here = mask.to(values.device)
        return values.new_zeros(here.shape).masked_scatter_(here, values)

    return spread


def _rearrange(p: nn.Parameter, state: dict[str, Any], change: Callable[[Tensor], Tensor]) -> None:
    """Change the form of a parameter, its gradient and its state alike."""
    shape, gradient = p.shape, p.grad
    for key, value in state.items():
        if isinstance(value, Tensor) and value.shape == shape:
            state[key] = change(value)
    p.grad = None
    weight = change(p.detach())
    # The graph of a loss that is still held keeps the node that takes p's gradients, which knows p's old shape. Another type
    # makes torch forget it.
    p.data = weight.new_empty(0, dtype=torch.float64 if p.dtype != torch.float64 else torch.float32)
    p.data = weight
    if gradient is not None:
        p.grad = change(gradient)
