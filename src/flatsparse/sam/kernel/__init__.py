"""Compiled passes that take a base's step and make the next perturbed weights at once. ``bases.py`` lists the bases.

They are plain C, called through ``ctypes``, bound to no version of torch: from a wheel, or built where a C compiler is at
hand; for the best instruction set there is. They run on torch's own threads.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flatsparse.common.compiled import Library
from flatsparse.sam.kernel.bases import BASES, Base, Group, base_of

__all__ = ["BASES", "LIBRARY", "Array", "Base", "base_of", "library", "square", "step", "takes"]

_N, _P, _T = ctypes.c_int64, ctypes.c_void_p, ctypes.c_int  # a size, an array, a number of threads


def _bind(loaded: ctypes.CDLL) -> None:
    loaded.flatsparse_square.restype = ctypes.c_double
    loaded.flatsparse_square.argtypes = [_N, _P, _P, _T]
    for base in BASES.values():
        function = getattr(loaded, base.function)
        pointers = [_P] * (4 + len(base.keys))  # weights, gradients, the state, perturbed weights; sizes
        function.argtypes = [_N, *pointers, *base.settings, ctypes.c_float, _T]
        function.restype = None


LIBRARY = Library(
    folder=Path(__file__).parent,
    bind=_bind,
    what="the compiled step",
    instead="leave kernel=True out",
)


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled passes, loaded, on the best instruction set or that of ``FLATSPARSE_INSTRUCTIONS``.

    Raises: InputError when it cannot be built or loaded, or the processor has no such set.
    """
    return LIBRARY.load()


def takes(p: Tensor, *others: Tensor) -> bool:
    """Return whether a pass can work on a parameter and what belongs to it: float32 on a CPU, dense, laid out alike."""
    layout = p.stride()
    return (
        type(p) is nn.Parameter
        and p.dtype == torch.float32
        and p.device.type == "cpu"
        and (p.is_contiguous() or p.is_contiguous(memory_format=torch.channels_last))
        and all(t.stride() == layout and t.dtype == p.dtype for t in others)
    )


def counts(steps: Tensor) -> bool:
    """Return whether a pass can count in a tensor: one float32 on the CPU, as torch makes it."""
    return steps.dtype == torch.float32 and steps.device.type == "cpu" and steps.numel() == 1


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
    base: Base, group: Group, weights: Array, gradients: Array, state: Sequence[Array], perturbed: Array, scale: float
) -> None:
    """Take a base's step with a group's settings, and write ``w + scale g`` into ``perturbed``."""
    getattr(library(), base.function)(
        len(weights.tensors),
        *(own.pointers for own in (weights, gradients, *state, perturbed)),
        weights.sizes,
        *base.settings_of(group),
        scale,
        torch.get_num_threads(),
    )
    written = [t for own in (weights, *state, perturbed) for t in own.tensors]
    torch.autograd.graph.increment_version(written)  # as a write by torch itself would


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*[t.data_ptr() for t in tensors])


def _sizes(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(tensors))(*[t.numel() for t in tensors])
