"""Swaps: parameters show other tensors for a while, and then their own again, bit for bit.

Nothing is added or subtracted. Plain tensors exchange storage; sharded ones, parts of tensors, and all when asked for,
exchange contents.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flatsparse.common.distributed import is_sharded, local_tensor, reshard
from flatsparse.sam.warn_once import WarnOnce

# A parameter; the tensor that it shows after the next exchange, of its shape, or (n,); and the flat indices of these n
# entries, None for all. A plain tuple, because every step makes three for each parameter.
Swap = tuple[nn.Parameter, Tensor, Tensor | None]


class WeightSwap:
    """Parameters that show other tensors, the true weights that are kept meanwhile, and the way back.

    Args:
        in_place: exchange the contents of plain tensors too.
        warn: called when weights were written to that were about to be replaced.

    Attributes:
        models: those whose calls swap weights; what FSDP2 has gathered of them is dropped with each exchange.
    """

    def __init__(self, warn: WarnOnce, *, in_place: bool) -> None:
        self.models: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._warn, self._in_place = warn, in_place
        self._swaps: list[Swap] = []  # the true weights of every perturbed parameter
        self._versions: list[int] = []  # of the perturbed parameters, when they were swapped

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "models"}  # copies follow nobody

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.models = weakref.WeakSet()
        self._versions = [p._version for p, _, _ in self._swaps]

    @property
    def is_applied(self) -> bool:
        """True while parameters show other tensors."""
        return bool(self._swaps)

    @property
    def swapped(self) -> list[nn.Parameter]:
        """The parameters that show other tensors at this moment."""
        return [p for p, _, _ in self._swaps]

    def show(self, swaps: Sequence[Swap]) -> None:
        """Let parameters show other tensors."""
        self._swaps = self._exchange(swaps)
        self._versions = [p._version for p, _, _ in self._swaps]

    def restore(self) -> None:
        """Let all parameters show the true weights."""
        swaps, self._swaps = self._true(), []
        written = [p._version for p, _, _ in swaps] != self._versions
        self._exchange(swaps)
        self._versions = []
        if written:  # after the exchange, for a warning may be an error
            self._warn(
                "written",
                "weights were written to while they held w + e, and the write is lost: write them after optimizer.step(),"
                " or call optimizer.eval() before",
            )

    @contextmanager
    def restored(self) -> Iterator[None]:
        """A context in which the parameters show the true weights, and after which they show what they did before."""
        swaps = self._exchange(self._true())
        self._swaps = []
        try:
            yield
        finally:
            self._swaps = self._exchange(swaps)

    def true_weights(self) -> dict[nn.Parameter, Tensor]:
        """Copies of the w behind every parameter that is perturbed at this moment."""
        swapped = self.swapped
        with self.restored():
            return {p: p.detach().clone() for p in swapped}

    def _true(self) -> list[Swap]:
        """The true weights as their parameters are by now, for a model may be cast or moved while it is perturbed."""
        if all(w.dtype is p.dtype for p, w, _ in self._swaps):
            return self._swaps
        return [(p, w.to(p.device, p.dtype), indices) for p, w, indices in self._swaps]

    @torch.no_grad()
    def _exchange(self, swaps: Sequence[Swap]) -> list[Swap]:
        """Exchange what parameters show for the other tensors. Returns the swaps that undo it."""
        if any(is_sharded(p) for p, _, _ in swaps):  # after a no-grad forward FSDP2 keeps what it has gathered
            for model in list(self.models):
                reshard(model)
        undo: list[Swap] = []
        for p, other, indices in swaps:
            if indices is None and not self._in_place and not is_sharded(p):
                before = p.data
                p.data = other
                undo.append((p, before, None))
            else:
                _exchange_contents(p, other, indices)
                undo.append((p, other, indices))
        if swaps and torch.is_autocast_cache_enabled():
            torch.clear_autocast_cache()  # it holds casts of the old contents, by parameter
        return undo


def take(tensor: Tensor, indices: Tensor | None) -> Tensor:
    """The entries of a tensor at flat indices, (n,); the tensor itself when they are None."""
    return tensor if indices is None else tensor.reshape(-1).index_select(0, indices)


def put(tensor: Tensor, indices: Tensor | None, values: Tensor) -> None:
    """Write values, (n,), to flat indices of a tensor; all of it when they are None."""
    if indices is None:
        tensor.copy_(values)
        return
    flat = tensor.reshape(-1)  # a copy only where rows are not contiguous (channels-last weights)
    flat.index_copy_(0, indices.long(), values)
    if not tensor.is_contiguous():
        tensor.copy_(flat.view(tensor.shape))


def _exchange_contents(p: nn.Parameter, other: Tensor, indices: Tensor | None) -> None:
    """Exchange contents through ``.data``, so that what autograd has kept of p still counts as unchanged."""
    here, there = local_tensor(p).data, local_tensor(other).data
    before = take(here, indices).clone() if indices is None else take(here, indices)
    put(here, indices, there)
    there.copy_(before)
