"""What a call of a model may change besides its output: buffers, attributes and generators of random numbers."""

from __future__ import annotations

import random
import sys
from types import TracebackType
from typing import Any

import torch
from torch import nn


class Undone:
    """A context at whose end a model and the generators of random numbers are as they were at its start.

    Attributes:
        generators: the states of the generators before they are put back, to compare with others.
        drew: whether numbers were drawn.
        changed: whether attributes of modules were changed.
        wrote: whether buffers were written to.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.drew = self.changed = self.wrote = False
        self.generators: tuple[Any, ...] = ()

    def __enter__(self) -> Undone:
        self._generators = _generators()
        self._attributes = [(m.__dict__, dict(m.__dict__)) for m in self.model.modules()]
        held = [value for _, before in self._attributes for value in before.values()]
        self._containers = [(value, value.copy()) for value in held if type(value) in (list, dict, set)]
        self._buffers = [(buffer, buffer._version, buffer.clone()) for buffer in self.model.buffers()]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.generators = _comparable(_generators())
        self.drew = self.generators != _comparable(self._generators)
        _restore_generators(self._generators)
        for now, before in (*self._attributes, *self._containers):
            if not _same(now, before):
                self.changed = True
                now.clear()
                (now.extend if isinstance(now, list) else now.update)(before)
        for buffer, version, value in self._buffers:
            self.wrote |= buffer._version != version
            buffer.data.copy_(value)


def _same(now: Any, before: Any) -> bool:
    """True for lists, sets or dictionaries of the same objects."""
    if isinstance(now, dict):
        return now.keys() == before.keys() and all(now[name] is value for name, value in before.items())
    if isinstance(now, set):
        return bool(now == before)
    return len(now) == len(before) and all(one is other for one, other in zip(now, before, strict=True))


def _generators() -> tuple[Any, ...]:
    numpy = sys.modules.get("numpy")
    return torch.get_rng_state(), random.getstate(), None if numpy is None else numpy.random.get_state()


def _comparable(states: tuple[Any, ...]) -> tuple[Any, ...]:
    by_torch, by_python, by_numpy = states
    rest = None if by_numpy is None else (by_numpy[0], by_numpy[1].tobytes(), *by_numpy[2:])
    return bytes(by_torch.tolist()), by_python, rest


def _restore_generators(states: tuple[Any, ...]) -> None:
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    if states[2] is not None:
        sys.modules["numpy"].random.set_state(states[2])
