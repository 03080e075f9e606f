"""The backward of a program, in the layout with the images of a batch innermost."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from flatsparse.acceleration import conv_kernels as kernels
from flatsparse.acceleration import conv_passes as passes
from flatsparse.acceleration.conv_index import ConvGeometry, ConvIndex
from flatsparse.acceleration.conv_kernels import Combined, InputGradient
from flatsparse.acceleration.conv_layout import LANES, Layout, zeros
from flatsparse.acceleration.network_program import Branch, Geometry, Program
from flatsparse.acceleration.network_run import Activations, BranchState


@dataclass(frozen=True, eq=False)
class Wanted:
    """Which gradients a backward computes.

    Attributes:
        images: that of the input.
        weights: for each branch, that of its weight.
        dense: those of every entry of the weights, not of the live ones only.
    """

    images: bool
    weights: list[bool]
    dense: bool


@dataclass(frozen=True, eq=False)
class BranchGradients:
    """The gradients of a branch's parameters; None for what it has not, or where none is wanted."""

    weight: Tensor | None
    bias: Tensor | None
    norm_weight: Tensor | None
    norm_bias: Tensor | None


class Pass:
    """One backward pass: gradients of values, gathered from their readers from the last unit to the first."""

    def __init__(
        self, program: Program, geometry: Geometry, indices: list[ConvIndex], activations: Activations, wanted: Wanted
    ) -> None:
        self.program, self.geometry, self.indices = program, geometry, indices
        self.activations, self.wanted = activations, wanted
        self._left = program.readers()
        self._gathered: dict[int, tuple[Tensor, Tensor | None]] = {}  # with sums, once it is whole and masked
        self._shared: set[int] = set()  # values whose tensor is another value's gradient too
        # The place of each unit's first branch.
        self._first = list(itertools.accumulate((len(unit.branches) for unit in program.units), initial=0))

    def run(self, given: tuple[Tensor | None, ...]) -> tuple[Tensor | None, list[BranchGradients]]:
        """Return the gradients of the input and of the branches' parameters, from those of the outputs."""
        for (value, mean), g in zip(self.program.outputs, given, strict=True):
            self._add(value, _from_output(g, self._layout(value), mean))
        results: dict[int, BranchGradients] = {}
        for number in range(len(self.program.units), 0, -1):
            unit, first = self.program.units[number - 1], self._first[number - 1]
            g, sums = self._whole(number)
            if unit.added is not None and (unit.added or self.wanted.images):
                self._add(unit.added, g, shared=True)
            for place, branch in enumerate(unit.branches, first):
                if place > first:
                    output = self.geometry.branches[place].output
                    sums = kernels.new_sums(output)
                    passes.reduce(output, g, with_=self.activations.states[place].y, sums=sums)
                results[place] = self._branch(branch, place, g, sums)
        images = None
        if self.wanted.images:
            images = passes.leave(self._gathered[0][0], self._layout(0))
        return images, [results[place] for place in range(len(results))]

    def _layout(self, value: int) -> Layout:
        """The layout of a value's gradient: its own without the border."""
        own = self.geometry.values[value]
        return Layout(own.images, own.channels, own.rows, own.columns)

    def _rectified(self, value: int) -> bool:
        return value > 0 and self.program.units[value - 1].rectify

    def _add(self, value: int, g: Tensor, shared: bool = False) -> None:
        """Add what one reader gives."""
        self._left[value] -= 1
        if value in self._gathered:
            self._gathered[value] = (self._gathered[value][0] + g, None)
            self._shared.discard(value)
        else:
            self._gathered[value] = (g, None)
            if shared:
                self._shared.add(value)

    def _whole(self, value: int) -> tuple[Tensor, Tensor]:
        """A value's gradient before its ReLU, and the sums for the norm of its unit's first branch."""
        g, sums = self._gathered.pop(value)
        if sums is not None:
            return g, sums
        layout, mask = self._layout(value), None
        if self._rectified(value):
            x = self.activations.values[value]
            assert isinstance(x, Tensor)  # a value that is not kept is read by convolutions alone, which give sums
            mask = (x, self.geometry.values[value])
            g = g.clone() if value in self._shared else g
        sums = kernels.new_sums(layout)
        passes.reduce(layout, g, mask=mask, with_=self.activations.states[self._first[value - 1]].y, sums=sums)
        return g, sums

    def _branch(self, branch: Branch, place: int, g: Tensor, sums: Tensor) -> BranchGradients:
        """The gradients of a branch's parameters; that of its input is added to the others."""
        where, state = self.geometry.branches[place], self.activations.states[place]
        inner, bias, norm_weight, norm_bias = _through_norm(branch, where, state, g, sums)
        x, wanted = self.activations.values[branch.source], self.wanted.weights[place]
        into = self._input_gradient(branch.source) if branch.source or self.wanted.images else None
        sparse = wanted and not (self.wanted.dense and branch.conv.weight.ndim == 4)
        live, dx = kernels.backward(where, self.indices[place], state.values, inner, x, weights=sparse, into=into)
        if into is not None and dx is not None:
            self._left[branch.source] -= 1
            self._gathered[branch.source] = (dx, into.sums)
            self._shared.discard(branch.source)
        weight = None
        if live is not None:
            weight = self.indices[place].forward.gradient(live, branch.conv.weight)
        elif wanted:
            weight = _dense_gradient(branch, where, inner, x)
        return BranchGradients(weight, bias, norm_weight, norm_bias)

    def _input_gradient(self, value: int) -> InputGradient:
        """What a convolution's input gradient becomes; that of the last reader also passes the ReLU and takes the sums."""
        before, _ = self._gathered.get(value, (None, None))
        if not value or self._left[value] > 1:
            return InputGradient(self._layout(value), before, False, None, None)
        y = self.activations.states[self._first[value - 1]].y
        return InputGradient(
            self._layout(value), before, self._rectified(value), y, kernels.new_sums(self._layout(value))
        )


def _from_output(g: Tensor | None, layout: Layout, mean: bool) -> Tensor:
    """The gradient that an output passes on."""
    if g is None:
        return zeros(*layout.shape)
    if not mean:
        return passes.enter(g, layout)
    pooled = zeros(layout.blocks * LANES, layout.channels)
    torch.div(g, layout.rows * layout.columns, out=pooled[: layout.images])
    result = layout.empty()
    passes.reduce(layout, result, pooled=pooled.view(layout.blocks, LANES, -1).transpose(1, 2).contiguous())
    return result


def _through_norm(
    branch: Branch, where: ConvGeometry, state: BranchState, g: Tensor, sums: Tensor
) -> tuple[Combined, Tensor | None, Tensor | None, Tensor | None]:
    """The gradient of the convolution's output, of its bias, and of the norm's weight and bias."""
    conv, output = branch.conv, where.output
    if state.normed is None:
        bias = None if conv.bias is None else sums[:, 0].sum(dim=(0, 2))
        shift = zeros(output.channels)
        return Combined(where.gradient, (g, output), shift + 1, shift), bias, None, None
    a, b, c, norm_weight, norm_bias = passes.norm_gradient(output, sums, state.normed, state.fixed)
    bias = None if conv.bias is None else a * norm_bias if state.fixed else torch.zeros_like(conv.bias)
    return Combined(where.gradient, (g, output), a, c, (state.y, output), b), bias, norm_weight, norm_bias


def _dense_gradient(branch: Branch, where: ConvGeometry, inner: Combined, x: Tensor | Combined) -> Tensor:
    """The gradient of every entry of a weight, by torch."""
    x = x.compute() if isinstance(x, Combined) else x
    return conv2d_weight(
        passes.leave(x, where.source),
        list(branch.conv.weight.shape),
        passes.leave(inner.compute(), where.gradient),
        branch.conv.stride,
        branch.conv.padding,
    )
