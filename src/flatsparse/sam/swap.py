"""Swaps: parameters show other tensors for a while, and then their own again, bit for bit.

Nothing is added or subtracted. Plain tensors exchange storage; sharded ones, parts of tensors, and all when asked for,
exchange contents.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from flatsparse.common.distributed import is_sharded, local_tensor, reshard
from flatsparse.sam.warn_once import WarnOnce

# A parameter; the tensor that it shows after the next exchange, of its shape, or (n,); and the flat indices of these n
# entries, None for all.
Swap = tuple[nn.Parameter, Tensor, Tensor | None]


@dataclass(frozen=True)
class Swaps:
    """Swaps of many parameters, in columns, because every step makes three for each parameter.

    Attributes:
        parameters: which show other tensors after the next exchange.
        others: those tensors, each of its parameter's shape, or (n,).
        indices: of each the flat indices of these n entries, None for all.
        sharded: whether a parameter is.
        whole: whether all are plain tensors and shown whole, so that they can exchange storage.
    """

    parameters: Sequence[nn.Parameter] = ()
    others: Sequence[Tensor] = ()
    indices: Sequence[Tensor | None] = ()
    sharded: bool = False
    whole: bool = True

    @classmethod
    def of(cls, swaps: Iterable[Swap]) -> Swaps:
        """Return swaps in columns."""
        rows = list(swaps)
        parameters, others, indices = ([p for p, _, _ in rows], [u for _, u, _ in rows], [i for _, _, i in rows])
        sharded = any(map(is_sharded, parameters))
        return cls(parameters, others, indices, sharded, not sharded and all(i is None for i in indices))

    def __len__(self) -> int:
        return len(self.parameters)

    def __iter__(self) -> Iterator[Swap]:
        return zip(self.parameters, self.others, self.indices, strict=True)


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
        self._swaps = Swaps()  # the true weights of every perturbed parameter
        self._versions: list[int] = []  # of the perturbed parameters, when they were swapped

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "models"}  # copies follow nobody

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.models = weakref.WeakSet()
        self._versions = self._versions_now()

    @property
    def is_applied(self) -> bool:
        """True while parameters show other tensors."""
        return bool(self._swaps)

    @property
    def swapped(self) -> list[nn.Parameter]:
        """The parameters that show other tensors at this moment."""
        return list(self._swaps.parameters)

    def show(self, swaps: Swaps) -> None:
        """Let parameters show other tensors."""
        self._swaps = self._exchange(swaps)
        self._versions = self._versions_now()

    def restore(self) -> None:
        """Let all parameters show the true weights."""
        if not self._swaps:
            return
        written = self._versions_now() != self._versions
        swaps, self._swaps = self._true(), Swaps()
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
        self._swaps = Swaps()
        try:
            yield
        finally:
            self._swaps = self._exchange(swaps)

    def true_weights(self) -> dict[nn.Parameter, Tensor]:
        """Copies of the w behind every parameter that is perturbed at this moment."""
        swapped = self.swapped
        with self.restored():
            return {p: p.detach().clone() for p in swapped}

    def _versions_now(self) -> list[int]:
        return [p._version for p in self._swaps.parameters]

    def _true(self) -> Swaps:
        """The true weights as their parameters are by now, for a model may be cast or moved while it is perturbed."""
        swaps = self._swaps
        if [w.dtype for w in swaps.others] == [p.dtype for p in swaps.parameters]:
            return swaps
        moved = [w.to(p.device, p.dtype) for p, w in zip(swaps.parameters, swaps.others, strict=True)]
        return replace(swaps, others=moved)

    @torch.no_grad()
    def _exchange(self, swaps: Swaps) -> Swaps:
        """Exchange what parameters show for the other tensors. Returns the swaps that undo it."""
        if swaps.sharded:  # after a no-grad forward FSDP2 keeps what it has gathered
            for model in list(self.models):
                reshard(model)
        if swaps.whole and not self._in_place:
            undo = replace(swaps, others=[p.data for p in swaps.parameters])
            for p, other in zip(swaps.parameters, swaps.others, strict=True):
                p.data = other
        else:
            undo = replace(swaps, others=[self._exchange_one(swap) for swap in swaps])
        if swaps and torch.is_autocast_cache_enabled():
            torch.clear_autocast_cache()  # it holds casts of the old contents, by parameter
        return undo

    def _exchange_one(self, swap: Swap) -> Tensor:
        """Exchange what one parameter shows. Returns the tensor that holds what it showed before."""
        p, other, indices = swap
        if indices is None and not self._in_place and not is_sharded(p):
            before = p.data
            p.data = other
            return before
        _exchange_contents(p, other, indices)
        return other


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
