"""Entries of ours in a base optimizer's state, beside momentum, so that every tool that saves or shards state finds them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

PERTURBED = "perturbed"  # the key of the perturbed weights u


class StateEntry:
    """The entries under one key of an optimizer's state, by parameter."""

    def __init__(self, base: Optimizer, key: str) -> None:
        self._base, self._key = base, key

    def get(self, p: nn.Parameter) -> Tensor | None:
        entry = self._base.state.get(p)
        return None if entry is None else entry.get(self._key)

    def entries(self, parameters: Iterable[nn.Parameter]) -> list[Tensor | None]:
        """Return those of many parameters."""
        key = self._key
        return [None if entry is None else entry.get(key) for entry in map(self._base.state.get, parameters)]

    def __setitem__(self, p: nn.Parameter, value: Tensor) -> None:
        self._base.state[p][self._key] = value

    def pop(self, p: nn.Parameter, default: None = None) -> Tensor | None:
        value: Tensor | None = self._base.state[p].pop(self._key, default) if p in self._base.state else default
        return value


def begun(base: Optimizer, tensors: dict[nn.Parameter, Tensor]) -> dict[nn.Parameter, Tensor]:
    """Return the tensors of the parameters whose state the base has created.

    An optimizer such as Adam creates its state where there is none yet, and would take an entry of ours for its own.
    """
    if isinstance(base, torch.optim.SGD):  # it does not ask whether an entry is the first
        return tensors
    entries = map(base.state.get, tensors)
    started = {p: t for (p, t), e in zip(tensors.items(), entries, strict=True) if e and len(e) > (PERTURBED in e)}
    return started or tensors  # a base may keep no state at all
