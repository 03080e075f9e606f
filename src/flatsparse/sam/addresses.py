"""Modules that hold on to the memory of a parameter, which perturbing it by an exchange of storage would pass by."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def address_holder(model: nn.Module, parameters: Sequence[nn.Parameter]) -> str | None:
    """Return the first module, in words, that holds the storage of a parameter by other means than the parameter; or None.

    It searches for tensors and arrays that share the storage, addresses as numbers or ``ctypes`` pointers, in a module's own
    attributes and one level below, and modules whose forward is a captured CUDA graph. It does not see what
    compiled code keeps.
    """
    by_address = {p.untyped_storage().data_ptr() for p in parameters if type(p) is nn.Parameter} - {0}
    owned = {id(p) for p in model.parameters()}
    for name, module in model.named_modules():
        label = f"{type(module).__name__} '{name}'" if name else type(module).__name__
        if "make_graphed_callables" in getattr(module.forward, "__qualname__", ""):
            return label
        skipped = ("_parameters", "_modules")
        values = [value for key, value in vars(module).items() if key not in skipped]
        if any(_address(value) in by_address for value in _reachable(values) if id(value) not in owned):
            return label
    return None


def _reachable(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        yield value
        if isinstance(value, dict):
            yield from value.values()
        elif isinstance(value, (list, tuple)):
            yield from value
        elif hasattr(value, "__dict__") and not isinstance(value, (type, Callable, Tensor)):  # type: ignore[arg-type]
            yield from vars(value).values()


def _address(value: Any) -> int | None:
    """Return the address that a value points to, if it is of a kind that points into storage."""
    if isinstance(value, Tensor):
        return value.untyped_storage().data_ptr() if value.layout == torch.strided else None
    if isinstance(value, int):
        return value
    if isinstance(value, np.ndarray):
        return int(value.ctypes.data)
    if isinstance(value, (ctypes.c_void_p, ctypes.c_uint64)):
        return value.value
    if isinstance(value, ctypes._Pointer):
        return ctypes.cast(value, ctypes.c_void_p).value
    return None
