"""The compiled convolution kernels, called on tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flatsparse.acceleration.conv_index import ConvGeometry, ConvIndex, Taps
from flatsparse.acceleration.conv_layout import LANES, Layout, empty, zeros
from flatsparse.acceleration.conv_structures import (
    SHARES,
    Backward,
    Combination,
    Convolution,
    Forward,
    WeightGradient,
    address,
    run,
    strides,
)
from flatsparse.acceleration.kernels import pointer, threads


@dataclass(frozen=True, eq=False)
class Combined:
    """A value as scale * x + scale2 * x2 + shift, by channel, rectified where asked.

    Attributes:
        layout: of the value, with its border.
        x, x2: activations and their layouts; there may be no second one.
        scale, scale2, shift: one for each channel; no scale2 is 1.
    """

    layout: Layout
    x: tuple[Tensor, Layout]
    scale: Tensor
    shift: Tensor
    x2: tuple[Tensor, Layout] | None = None
    scale2: Tensor | None = None
    rectify: bool = False

    def at(self, y: Tensor) -> Combination:
        """Return it as the kernels' argument, written to y."""
        layout, (x, own), (x2, own2) = self.layout, self.x, self.x2 or (None, self.layout)
        return Combination(
            layout.rows, layout.columns, layout.channels, layout.images, layout.pad, self.rectify,
            address(x, own.offset(0, 0)), address(x2, own2.offset(0, 0)), pointer(self.scale), pointer(self.scale2),
            pointer(self.shift), address(y, layout.offset(0, 0)), strides(own), strides(own2), strides(layout),
        )  # fmt: skip

    def compute(self) -> Tensor:
        """Return the value."""
        y = self.layout.empty()
        run("combine", self.at(y), self.layout.blocks)
        return y


def cleared(layout: Layout) -> Tensor:
    """Room for an activation, with a border of zeros."""
    y = layout.empty()
    if layout.pad:
        structure = Combination(rows=layout.rows, columns=layout.columns, channels=layout.channels, pad=layout.pad)
        structure.y, structure.out = address(y, layout.offset(0, 0)), strides(layout)
        run("combine", structure, layout.blocks)
    return y


def new_sums(layout: Layout) -> Tensor:
    """Zeros for sums over the pixels of an activation, and over those of a product."""
    return zeros(layout.blocks, 2, layout.channels, LANES)


def _room(layout: Layout) -> Tensor:
    """Room for one block a thread."""
    return empty(threads(), layout.strides[0])


def _convolution(
    geometry: ConvGeometry, taps: Taps, values: Tensor, x: Tensor, y: Tensor, target: Layout, start: Tensor | None
) -> Convolution:
    source, output = geometry.source, geometry.output
    structure = Convolution(output.rows, output.columns, output.channels)
    structure.starts, structure.offsets = pointer(taps.starts), pointer(taps.offsets)
    structure.values, structure.start = pointer(values), pointer(start)
    structure.x = address(x, source.offset(-geometry.padding[0], -geometry.padding[1]))
    structure.y, structure.out = address(y, target.offset(0, 0)), strides(target)
    structure.in_ = strides(source, geometry.stride)
    return structure


@dataclass(frozen=True, eq=False)
class Convolved:
    """A convolution, and what was made on the way.

    Attributes:
        y: its values plus ``shift``.
        shift: by output channel; near minus the mean where sums were asked for, else None for 0.
        sums: over pixels, of y and of its square, where they were asked for.
        x: the input, where it was made and is kept.
    """

    y: Tensor
    shift: Tensor | None
    sums: Tensor | None
    x: Tensor | None


def forward(
    geometry: ConvGeometry,
    taps: Taps,
    values: Tensor,
    x: Tensor | Combined,
    *,
    keep: bool = False,
    sum_up: bool = False,
) -> Convolved:
    """Convolve x, which is made on the way where it is a combination, and kept or not."""
    y, source = geometry.output.empty(), geometry.source
    buffer = x if not isinstance(x, Combined) else source.empty() if keep else _room(source)
    shift, sums = (empty(geometry.output.channels), new_sums(geometry.output)) if sum_up else (None, None)
    above = geometry.padding[0]
    structure = Forward(
        source.blocks, keep, geometry.stride, above, geometry.kernel[0] - above, pointer(buffer), pointer(shift)
    )
    if isinstance(x, Combined):
        structure.input = x.at(buffer)
    structure.input.images = source.images
    structure.convolution = _convolution(geometry, taps, values, buffer, y, geometry.output, None)
    structure.convolution.sums = pointer(sums)
    run("forward", structure)
    return Convolved(y, shift, sums, buffer if isinstance(x, Combined) and keep else None)


def convolve(
    geometry: ConvGeometry,
    taps: Taps,
    values: Tensor,
    x: Tensor,
    start: Tensor | None,
    *,
    y: Tensor,
    target: Layout,
    added: tuple[Tensor, Layout] | None = None,
    rectify: bool = False,
) -> None:
    """Convolve x into y, of layout target, plus another activation, rectified where asked."""
    structure = _convolution(geometry, taps, values, x, y, target, start)
    structure.rectify = rectify
    if added is not None:
        structure.add, structure.added = address(added[0], added[1].offset(0, 0)), strides(added[1])
    run("convolve", structure, target.blocks)


@dataclass(frozen=True, eq=False)
class InputGradient:
    """What the gradient of a convolution's input is made into.

    Attributes:
        layout: of the gradient, without a border.
        add: a gradient that came from elsewhere.
        mask: whether it is 0 where the input is not positive.
        with_: an activation of that layout; sums get those of the gradient, and of it times this.
    """

    layout: Layout
    add: Tensor | None
    mask: bool
    with_: Tensor | None
    sums: Tensor | None


def backward(
    geometry: ConvGeometry,
    index: ConvIndex,
    values: Tensor,
    output_gradient: Combined,
    x: Tensor | Combined,
    *,
    weights: bool,
    into: InputGradient | None,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of the live weights, where wanted, and of the input, where there is something to make it into."""
    count, source = len(values), geometry.source
    rooms = _room(geometry.gradient), _room(source) if isinstance(x, Combined) else None
    gradient = empty(count) if weights else None
    sums = empty(min(source.blocks, SHARES), count, LANES) if weights else None
    structure = Backward(
        source.blocks, not isinstance(x, Combined), geometry.stride,
        max(geometry.kernel[0] - geometry.padding[0], geometry.stride), 1 + geometry.ahead, 0, count,
        pointer(rooms[1]), pointer(rooms[0]), pointer(gradient), pointer(sums),
    )  # fmt: skip
    structure.output_gradient = output_gradient.at(rooms[0])
    if isinstance(x, Combined):
        assert rooms[1] is not None
        structure.input = x.at(rooms[1])
        x = rooms[1]
    structure.weights = _weights(geometry, index.forward, rooms[0], x)
    dx, kept = None, []
    if into is not None:
        dx = into.layout.empty()
        for (a, b), taps in index.backward.items():
            if a < source.rows and b < source.columns:
                kept.append(torch.index_select(values, 0, taps.where))
                phase = _phase(geometry, taps, kept[-1], rooms[0], x, dx, into, a, b)
                structure.input_gradient[structure.phases] = phase
                structure.phases += 1
    run("backward", structure)
    return gradient, dx


def _weights(geometry: ConvGeometry, taps: Taps, gradient: Tensor, x: Tensor) -> WeightGradient:
    output, source = geometry.output, geometry.source
    return WeightGradient(
        output.rows, output.columns, output.channels, pointer(taps.starts), pointer(taps.offsets),
        address(gradient, geometry.gradient.offset(0, 0)),
        address(x, source.offset(-geometry.padding[0], -geometry.padding[1])), None,
        strides(geometry.gradient), strides(source, geometry.stride),
    )  # fmt: skip


def _phase(
    geometry: ConvGeometry, taps: Taps, values: Tensor, gradient: Tensor, x: Tensor, dx: Tensor, into: InputGradient,
    a: int, b: int,
) -> Convolution:  # fmt: skip
    """The gradient of input pixels (stride * i + a, stride * j + b)."""
    source, stride, here = geometry.source, geometry.stride, into.layout.offset(a, b)
    structure = Convolution(
        (source.rows - 1 - a) // stride + 1, (source.columns - 1 - b) // stride + 1, source.channels
    )
    structure.starts, structure.offsets, structure.values = pointer(taps.starts), pointer(taps.offsets), pointer(values)
    structure.x, structure.in_ = address(gradient, geometry.gradient.offset(0, 0)), strides(geometry.gradient)
    structure.y, structure.out = address(dx, here), strides(into.layout, stride)
    structure.add, structure.added = address(into.add, here), strides(into.layout, stride)
    if into.mask:
        structure.mask, structure.masked = address(x, source.offset(a, b)), strides(source, stride)
    structure.with_, structure.sums = address(into.with_, here), pointer(into.sums)
    return structure
