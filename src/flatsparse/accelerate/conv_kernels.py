"""The compiled convolution kernels, called on tensors."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import torch
from torch import Tensor

from flatsparse.accelerate.conv_layout import LANES, Layout

BANDS = 2  # as in conv.h


class Strides(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("block", "row", "channel", "step")]


def _fields(sizes: str, pointers: str, strides: str) -> list[tuple[str, Any]]:
    return [
        *((name, ctypes.c_int64) for name in sizes.split()),
        *((name, ctypes.c_void_p) for name in pointers.split()),
        *((name, Strides) for name in strides.split()),
    ]


class Convolution(ctypes.Structure):
    _fields_ = _fields("blocks rows columns outputs", "starts offsets values start x add mask with_ y sums", "in_ out masked")


class WeightGradient(ctypes.Structure):
    _fields_ = _fields("blocks rows columns outputs", "starts offsets g x gradient sums", "outer in_")


class Combination(ctypes.Structure):
    _fields_ = _fields(
        "blocks rows columns channels images pad rectify", "x x2 scale scale2 shift y", "in_ in2 out"
    )


class Reduction(ctypes.Structure):
    _fields_ = _fields("blocks rows columns channels", "pooled mask with_ g sums", "out masked")


L = ctypes.CDLL(os.environ.get("CONVSO", "/tmp/convdev/conv8.so"))
SET = int(os.environ.get("CONVSET", L.flatsparse_conv_set()))
def call(name, struct):
    getattr(L, "flatsparse_" + name)(SET, torch.get_num_threads(), ctypes.byref(struct))
