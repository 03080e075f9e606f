"""The index of a convolution's live weights: for each output the places it reads, for each input the places it is read by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flatsparse.accelerate.conv_layout import LANES, Layout


@dataclass(frozen=True)
class Taps:
    """Live weights by row, an output channel or, transposed, an input channel.

    Attributes:
        starts: where each row begins, int32, one more than rows.
        offsets: floats from the pixel to the entry that is read, int32.
        where: the entries of the flattened dense weight, int64.
    """

    starts: Tensor
    offsets: Tensor
    where: Tensor


def _taps(rows: Tensor, count: int, offsets: Tensor, where: Tensor) -> Taps:
    """Taps sorted by row, and within one by place, as memory is read."""
    order = torch.argsort(offsets, stable=True)
    order = order[torch.argsort(rows[order], stable=True)]
    starts = torch.zeros(count + 1, dtype=torch.int32)
    starts[1:] = torch.bincount(rows, minlength=count).cumsum(0)
    return Taps(starts, offsets[order].to(torch.int32), where[order])


def forward_taps(mask: Tensor, source: Layout) -> Taps:
    """Return the taps of each output into the padded input; mask is (outputs, inputs, kernel, kernel)."""
    where = mask.flatten().nonzero().flatten()
    o, c, y, x = torch.unravel_index(where, mask.shape)
    _, row, channel = source.strides
    return _taps(o, len(mask), y * row + x * LANES + c * channel, where)


def backward_taps(mask: Tensor, gradient: Layout, stride: int, padding: int) -> dict[tuple[int, int], Taps]:
    """Return, for each phase of the input's rows and columns, the taps of each input into the output's padded gradient.

    The gradient of input pixel (stride * i + a, stride * j + b) sums, over the weights (o, c, y, x) for which
    (a + padding - y) and (b + padding - x) are multiples of the stride, that of output pixel (i + their quotient, ...).
    """
    where = mask.flatten().nonzero().flatten()
    o, c, y, x = torch.unravel_index(where, mask.shape)
    _, row, channel = gradient.strides
    result = {}
    for a in range(stride):
        for b in range(stride):
            dy, dx = a + padding - y, b + padding - x
            here = (dy % stride == 0) & (dx % stride == 0)
            offsets = dy // stride * row + dx // stride * LANES + o * channel
            result[a, b] = _taps(c[here], mask.shape[1], offsets[here], where[here])
    return result
