"""The index of a convolution's live weights: for each output the places it reads, for each input the places it is read by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flatsparse.acceleration.conv_layout import LANES, Layout


@dataclass(frozen=True)
class Taps:
    """Live weights by row, which is an output channel or, in a backward, an input channel.

    Attributes:
        starts: where each row begins, int32, one more than rows.
        offsets: floats from the pixel to the entry that is read, int32.
        where: which value each has: its place among the entries of the dense weight, or of the forward's values; int32.
    """

    starts: Tensor
    offsets: Tensor
    where: Tensor


@dataclass(frozen=True)
class ForwardTaps(Taps):
    """The taps of a forward, whose values are those of the weight.

    Attributes:
        rows: the output channel of each, int32.
        places: the place of each among the live entries in row-major order, int32.
    """

    rows: Tensor
    places: Tensor

    def values(self, weight: Tensor) -> Tensor:
        """Return the values of the taps, from a weight or, if it is packed, from its live entries in row-major order."""
        return weight.flatten().index_select(0, self._at(weight))

    def gradient(self, of_values: Tensor, weight: Tensor) -> Tensor:
        """Return the gradient of the weight, as it is stored, from that of the values."""
        flat = torch.zeros(weight.numel(), dtype=of_values.dtype)
        flat[self._at(weight)] = of_values
        return flat.view(weight.shape)

    def _at(self, weight: Tensor) -> Tensor:
        return self.where if weight.ndim == 4 else self.places


@dataclass(frozen=True)
class ConvGeometry:
    """Where one convolution reads and writes.

    Attributes:
        kernel, padding: of rows and columns.
        stride: of both.
        source: the layout of its input, padded at least as far as the convolution reaches.
        output: the layout of what it computes, without a border.
        gradient: that layout with the border that the gradient of the input reads.
    """

    kernel: tuple[int, int]
    padding: tuple[int, int]
    stride: int
    source: Layout
    output: Layout
    gradient: Layout

    @property
    def ahead(self) -> int:
        """The rows past its own that row i of a phase of the input reads of the output's gradient."""
        return max(0, (self.stride - 1 + self.padding[0]) // self.stride)


@dataclass(frozen=True)
class ConvIndex:
    """The forward's taps, and the backward's for each phase (a, b): input pixels (stride * i + a, stride * j + b)."""

    forward: ForwardTaps
    backward: dict[tuple[int, int], Taps]


def convolution_geometry(
    source: Layout, outputs: int, kernel: tuple[int, int], stride: int, padding: tuple[int, int]
) -> ConvGeometry:
    """Return where a convolution of an input of this layout reads and writes."""
    rows, columns = (
        (size + 2 * pad - width) // stride + 1
        for size, width, pad in zip((source.rows, source.columns), kernel, padding, strict=True)
    )
    border = max(
        _reach(size, out, width, stride, pad)
        for size, out, width, pad in zip((source.rows, source.columns), (rows, columns), kernel, padding, strict=True)
    )
    output = Layout(source.images, outputs, rows, columns)
    return ConvGeometry(kernel, padding, stride, source, output, Layout(source.images, outputs, rows, columns, border))


def _reach(size: int, out: int, width: int, stride: int, pad: int) -> int:
    """How far past its border the gradient of the output is read, along one dimension."""
    places = [
        (phase + pad - tap) // stride + index
        for phase in range(min(stride, size))
        for tap in range(width)
        if (phase + pad - tap) % stride == 0
        for index in (0, (size - 1 - phase) // stride)
    ]
    return max([0, *(-place for place in places), *(place - (out - 1) for place in places)])


def convolution_index(live: Tensor, geometry: ConvGeometry) -> ConvIndex:
    """Return the taps of a weight's live entries; live is bool, (outputs, inputs, kernel rows, kernel columns)."""
    where = live.flatten().nonzero().flatten()
    o, c, y, x = torch.unravel_index(where, live.shape)
    _, row, channel = geometry.source.strides
    offsets = y * row + x * LANES + c * channel
    order = _order(o, offsets)
    o, c, y, x, where = o[order], c[order], y[order], x[order], where[order]
    starts = _starts(o, live.shape[0])
    forward = ForwardTaps(starts, offsets[order].int(), where.int(), o.int(), order.int())
    _, row, channel = geometry.gradient.strides
    backward = {}
    for a in range(geometry.stride):
        for b in range(geometry.stride):
            # Output pixel i reads input pixel stride * i + y - padding.
            dy, dx = a + geometry.padding[0] - y, b + geometry.padding[1] - x
            here = ((dy % geometry.stride == 0) & (dx % geometry.stride == 0)).nonzero().flatten()
            offsets = (dy // geometry.stride * row + dx // geometry.stride * LANES + o * channel)[here]
            order = _order(c[here], offsets)
            backward[a, b] = Taps(_starts(c[here], live.shape[1]), offsets[order].int(), here[order].int())
    return ConvIndex(forward, backward)


def _order(rows: Tensor, offsets: Tensor) -> Tensor:
    """The order by row, and within one by place, as memory is read."""
    order = torch.argsort(offsets, stable=True)
    return order[torch.argsort(rows[order], stable=True)]


def _starts(rows: Tensor, count: int) -> Tensor:
    return torch.cat([rows.new_zeros(1), torch.bincount(rows, minlength=count).cumsum(0)]).int()
