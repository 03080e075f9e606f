"""The arguments of the compiled convolution kernels, as conv.c declares them."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from torch import Tensor

from flatsparse.acceleration.conv_layout import Layout
from flatsparse.acceleration.kernels import library, threads

SHARES, PHASES = 8, 16  # as in conv.c


def _fields(**kinds: str) -> list[tuple[str, Any]]:
    """Fields in order, named by kind."""
    types: dict[str, Any] = {"integers": ctypes.c_int64, "pointers": ctypes.c_void_p, "doubles": ctypes.c_double}
    return [(name, types[kind]) for kind, names in kinds.items() for name in names.split()]


def _strides(names: str) -> list[tuple[str, Any]]:
    return [(name, Strides) for name in names.split()]


class Strides(ctypes.Structure):
    _fields_ = _fields(integers="block row channel step")


class Combination(ctypes.Structure):
    _fields_ = [
        *_fields(integers="rows columns channels images pad rectify", pointers="x x2 scale scale2 shift y"),
        *_strides("in_ in2 out"),
    ]


class Convolution(ctypes.Structure):
    _fields_ = [
        *_fields(
            integers="rows columns outputs rectify", pointers="starts offsets values start x add mask with_ y sums"
        ),
        *_strides("in_ added masked out"),
    ]


class WeightGradient(ctypes.Structure):
    _fields_ = [*_fields(integers="rows columns outputs", pointers="starts offsets g x sums"), *_strides("outer in_")]


class Forward(ctypes.Structure):
    _fields_ = [
        *_fields(integers="blocks kept step above reach", pointers="room shift"),
        ("input", Combination),
        ("convolution", Convolution),
    ]


class Backward(ctypes.Structure):
    _fields_ = [
        *_fields(integers="blocks kept step reach gradient_reach phases values"),
        *_fields(pointers="room gradient_room gradient sums"),
        ("input", Combination),
        ("output_gradient", Combination),
        ("weights", WeightGradient),
        ("input_gradient", Convolution * PHASES),
    ]


class Reduction(ctypes.Structure):
    _fields_ = [
        *_fields(integers="blocks rows columns channels", pointers="pooled mask with_ g sums"),
        *_strides("out masked"),
    ]


class Norm(ctypes.Structure):
    _fields_ = _fields(
        integers="channels images count",
        pointers="sums less weight bias running_mean running_var scale shift mean inverse",
        doubles="eps factor",
    )


class NormGradient(ctypes.Structure):
    _fields_ = _fields(
        integers="channels images count fixed", pointers="sums scale mean inverse a b c weight_gradient bias_gradient"
    )


class Exchange(ctypes.Structure):
    _fields_ = [
        *_fields(integers="images channels rows columns image channel row column", pointers="there here"),
        *_strides("in_"),
    ]


@functools.cache
def _function(name: str, sizes: int) -> Any:
    function = getattr(library(), f"flatsparse_{name}")
    function.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * sizes, ctypes.c_int]
    function.restype = None
    return function


def run(name: str, structure: ctypes.Structure, *sizes: int) -> None:
    """Run a kernel on torch's threads."""
    _function(name, len(sizes))(ctypes.addressof(structure), *sizes, threads())


def strides(layout: Layout, step: int = 1) -> Strides:
    """The strides of an activation, of which only every ``step``-th row and column is looked at."""
    block, row, channel = layout.strides
    return Strides(block, row * step, channel, step)


def address(tensor: Tensor | None, offset: int) -> int | None:
    """The address of a float of a tensor; null for None."""
    return None if tensor is None else tensor.data_ptr() + 4 * offset
