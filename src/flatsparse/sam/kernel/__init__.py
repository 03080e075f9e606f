"""A compiled pass that takes SGD's step and makes the next perturbed weights at once.

It is plain C, called through ``ctypes``, bound to no version of torch: from a wheel, or built where a C compiler is at hand;
for the best instruction set there is. It runs on torch's own threads.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from flatsparse.common.compiled import Library

__all__ = ["LIBRARY", "Array", "library", "square", "step", "suits", "takes"]


def _bind(loaded: ctypes.CDLL) -> None:
    loaded.flatsparse_square.restype = ctypes.c_double
    loaded.flatsparse_square.argtypes = [ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
    numbers: list[Any] = [*[ctypes.c_float] * 4, ctypes.c_int, ctypes.c_float, ctypes.c_int]
    loaded.flatsparse_step.argtypes = [ctypes.c_int64, *[ctypes.c_void_p] * 5, *numbers]
    loaded.flatsparse_step.restype = None


LIBRARY = Library(
    folder=Path(__file__).parent,
    bind=_bind,
    what="the compiled step",
    instead="leave kernel=True out",
)


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled pass, loaded, on the best instruction set or that of ``FLATSPARSE_INSTRUCTIONS``.

    Raises: InputError when it cannot be built or loaded, or the processor has no such set.
    """
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


class Array(NamedTuple):
    """Tensors, with their addresses and sizes as C reads them."""

    tensors: Sequence[Tensor]
    pointers: ctypes.Array[ctypes.c_void_p]
    sizes: ctypes.Array[ctypes.c_int64]

    @classmethod
    def of(cls, tensors: Sequence[Tensor], sizes: ctypes.Array[ctypes.c_int64] | None = None) -> Array:
        """Return tensors with their addresses; their sizes may be known."""
        return cls(tensors, _pointers(tensors), _sizes(tensors) if sizes is None else sizes)


def square(tensors: Sequence[Tensor] | Array) -> float:
    """Return the sum of the squares of all entries."""
    own = tensors if isinstance(tensors, Array) else Array.of(tensors)
    return library().flatsparse_square(len(own.tensors), own.pointers, own.sizes, torch.get_num_threads())


def step(
    group: dict[str, float], weights: Array, gradients: Array, momenta: Array, perturbed: Array, scale: float
) -> None:
    """Take SGD's step with a group's settings, and write ``w + scale g`` into ``perturbed``."""
    library().flatsparse_step(
        len(weights.tensors),
        *(own.pointers for own in (weights, gradients, momenta, perturbed)),
        weights.sizes,
        float(group["lr"]),
        group["momentum"],
        1 - group["dampening"],
        group["weight_decay"],
        int(group["nesterov"]),
        scale,
        torch.get_num_threads(),
    )
    written = [*weights.tensors, *momenta.tensors, *perturbed.tensors]
    torch.autograd.graph.increment_version(written)  # as a write by torch itself would


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*[t.data_ptr() for t in tensors])


def _sizes(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(tensors))(*[t.numel() for t in tensors])
