"""A compiled pass that takes SGD's step and makes the next perturbed weights at once, where a C compiler is at hand.

It is plain C, called through ``ctypes``: built in a second, bound to no version of torch. It runs on torch's own threads.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from flatsparse.common.compiled import FLAGS, Library

__all__ = ["LIBRARY", "library", "square", "step", "suits", "takes"]


def _bind(loaded: ctypes.CDLL) -> None:
    loaded.flatsparse_square.restype = ctypes.c_double
    loaded.flatsparse_square.argtypes = [ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
    numbers: list[Any] = [*[ctypes.c_float] * 4, ctypes.c_int, ctypes.c_float, ctypes.c_int]
    loaded.flatsparse_step.argtypes = [ctypes.c_int64, *[ctypes.c_void_p] * 5, *numbers]
    loaded.flatsparse_step.restype = None


LIBRARY = Library(
    name="step",
    sources=(Path(__file__).with_name("step.c"),),
    bind=_bind,
    what="the compiled step",
    instead="leave kernel=True out",
    flags=(*FLAGS, "-march=native"),
)


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled pass, loaded. Raises: InputError when it cannot be built or loaded."""
    return LIBRARY.load()


def suits(base: Optimizer) -> bool:
    """Return whether the pass can stand in for an optimizer: plain SGD with momentum."""
    return type(base) is SGD and all(group["momentum"] != 0 and not group["maximize"] for group in base.param_groups)


def takes(p: Tensor, *others: Tensor) -> bool:
    """Return whether the pass can work on a parameter and what belongs to it: float32 on a CPU, dense, laid out alike."""
    layout = p.stride()
    return (
        type(p) is nn.Parameter
        and p.dtype == torch.float32
        and p.device.type == "cpu"
        and (p.is_contiguous() or p.is_contiguous(memory_format=torch.channels_last))
        and all(t.stride() == layout and t.dtype == p.dtype for t in others)
    )


def square(tensors: Sequence[Tensor]) -> float:
    """Return the sum of the squares of all entries."""
    return library().flatsparse_square(len(tensors), _pointers(tensors), _sizes(tensors), torch.get_num_threads())


def step(
    group: dict[str, float],
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    momenta: Sequence[Tensor],
    perturbed: Sequence[Tensor],
    scale: float,
) -> None:
    """Take SGD's step with a group's settings, and write ``w + scale g`` into ``perturbed``."""
    library().flatsparse_step(
        len(weights),
        *map(_pointers, (weights, gradients, momenta, perturbed)),
        _sizes(weights),
        float(group["lr"]),
        group["momentum"],
        1 - group["dampening"],
        group["weight_decay"],
        int(group["nesterov"]),
        scale,
        torch.get_num_threads(),
    )
    torch.autograd.graph.increment_version([*weights, *momenta, *perturbed])  # as a write by torch itself would


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))


def _sizes(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(tensors))(*(t.numel() for t in tensors))
