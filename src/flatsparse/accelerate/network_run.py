"""Forward and backward of a program, in the layout with the images of a batch innermost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flatsparse.accelerate import conv_kernels as kernels
from flatsparse.accelerate.conv_index import ConvGeometry, ConvIndex, convolution_index
from flatsparse.accelerate.conv_layout import LANES, Layout
from flatsparse.accelerate.network_program import Branch, Geometry, Program, Unit


@dataclass(frozen=True, eq=False)
class BranchState:
    """What a branch's forward leaves for its backward.

    Attributes:
        values: the live weights, in the order of the index.
        y: the convolution, without what its norm's running mean or its bias adds.
        normed: what ``conv_kernels.norm`` gave; None without a norm.
        fixed: whether that came from running statistics.
    """

    values: Tensor
    y: Tensor
    normed: Tensor | None
    fixed: bool


@dataclass(frozen=True, eq=False)
class Activations:
    """The values of a program, padded, and the states of its branches, in order."""

    values: list[Tensor]
    states: list[BranchState]


def run_forward(program: Program, geometry: Geometry, indices: list[ConvIndex], images: Tensor) -> Activations:
    """Compute every value, with what a backward needs; batch norms' running statistics are updated as torch does."""
    values, states = [kernels.enter(images, geometry.values[0])], []
    branch_number = 0
    for number, unit in enumerate(program.units, 1):
        terms = []
        for branch in unit.branches:
            where, index = geometry.branches[branch_number], indices[branch_number]
            state, scale, shift = _branch_forward(branch, where, index, values[branch.source])
            states.append(state)
            terms.append(((state.y, where.output), scale, shift))
            branch_number += 1
        (x, scale, shift), *others = terms
        x2, scale2 = None, None
        if others:
            x2, scale2, more = others[0]
            shift = shift + more
        elif unit.added is not None:
            x2 = (values[unit.added], geometry.values[unit.added])
        target = geometry.values[number]
        values.append(kernels.combine(target, x, scale, shift, x2, scale2, rectify=unit.rectify))
    return Activations(values, states)


def _branch_forward(
    branch: Branch, geometry: ConvGeometry, index: ConvIndex, x: Tensor
) -> tuple[BranchState, Tensor, Tensor]:
    """The state of a branch, and the scale and shift of its norm."""
    conv, norm, output = branch.conv, branch.norm, geometry.output
    values = torch.index_select(conv.weight.detach().flatten(), 0, index.forward.where)
    y = output.empty()
    bias = None if conv.bias is None else conv.bias.detach()
    if norm is None:
        kernels.convolve(geometry, index.forward, values, x, y)
        shift = torch.zeros(output.channels) if bias is None else bias
        return BranchState(values, y, None, True), torch.ones(output.channels), shift
    running = None if norm.running_mean is None or norm.running_var is None else (norm.running_mean, norm.running_var)
    batch_statistics = norm.training or running is None
    # Sums are taken of what is left of the inputs, whose mean is near zero, so that no digits are lost.
    less = None if running is None else running[0].clone()
    start = less if less is None else -less
    start = bias if start is None else start if bias is None else start + bias
    sums = kernels.new_sums(output) if batch_statistics else None
    kernels.convolve(geometry, index.forward, values, x, y, start, sums=sums)
    update = running if norm.training and norm.track_running_stats else None
    factor = _update_factor(norm) if update else 0.0
    normed = kernels.norm(
        output, sums, less, _data(norm.weight), _data(norm.bias), update if sums is not None else running, norm.eps, factor
    )
    return BranchState(values, y, normed, sums is None), normed[0], normed[1]


def _update_factor(norm: nn.BatchNorm2d) -> float:
    """The weight of this batch in the running statistics; the batch is counted."""
    if norm.num_batches_tracked is None:
        return 0.0 if norm.momentum is None else norm.momentum
    norm.num_batches_tracked.add_(1)
    return 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum


def _data(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def outputs(program: Program, geometry: Geometry, values: list[Tensor]) -> tuple[Tensor, ...]:
    """The outputs of a program, as torch has them."""
    return tuple(
        _mean(values[value], geometry.values[value]) if mean else kernels.leave(values[value], geometry.values[value])
        for value, mean in program.outputs
    )


def _mean(value: Tensor, layout: Layout) -> Tensor:
    """The means over pixels, (N, C)."""
    total = value.sum(dim=(1, 3))  # the border is zero
    return total.div_(layout.rows * layout.columns).transpose(1, 2).flatten(0, 1)[: layout.images].contiguous()


def run_evaluation(program: Program, geometry: Geometry, indices: list[ConvIndex], images: Tensor) -> tuple[Tensor, ...]:
    """The outputs with norms of running statistics, folded into the convolutions' weights; nothing is kept for a backward."""
    values = [kernels.enter(images, geometry.values[0])]
    number = 0
    for made, unit in enumerate(program.units, 1):
        target = geometry.values[made]
        added = None if unit.added is None else (values[unit.added], geometry.values[unit.added])
        value = kernels.combine(target, None, None, None) if target.pad else target.empty()
        for last, branch in zip([False] * (len(unit.branches) - 1) + [True], reversed(unit.branches), strict=True):
            where, index = geometry.branches[number + unit.branches.index(branch)], indices[number + unit.branches.index(branch)]
            folded, start = _folded(branch, index)
            y, into = (value, target) if last else (where.output.empty(), where.output)
            kernels.convolve(
                where, index.forward, folded, values[branch.source], y, start,
                target=into, added=added, rectify=unit.rectify and last,
            )  # fmt: skip
            added = (y, into)
        number += len(unit.branches)
        values.append(value)
    return outputs(program, geometry, values)


def _folded(branch: Branch, index: ConvIndex) -> tuple[Tensor, Tensor | None]:
    """The live weights times the scale of the norm, and what it adds."""
    conv, norm = branch.conv, branch.norm
    values = torch.index_select(conv.weight.flatten(), 0, index.forward.where)
    if norm is None:
        return values, conv.bias
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    start = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
    start = start * scale
    return values * scale[index.forward.rows], start if norm.bias is None else start + norm.bias


class _Gradients:
    """Gradients of values, gathered from their readers while a program runs backward."""

    def __init__(self, program: Program, geometry: Geometry, activations: Activations) -> None:
        self.program, self.geometry, self.activations = program, geometry, activations
        self.left = program.readers()
        self.sums: dict[int, tuple[Tensor, Tensor | None]] = {}  # what came, and its sums where it is whole
        self.shared: set[int] = set()  # whose tensor belongs to another value too

    def layout(self, value: int) -> Layout:
        """Return the layout of a gradient: the value's, without its border."""
        own = self.geometry.values[value]
        return Layout(own.images, own.channels, own.rows, own.columns)

    def add(self, value: int, g: Tensor, shared: bool = False) -> None:
        """Add what one reader gives; shared where the tensor is still read by others."""
        self.left[value] -= 1
        if value in self.sums:
            self.sums[value] = (self.sums[value][0] + g, None)
            self.shared.discard(value)
        else:
            self.sums[value] = (g, None)
            if shared:
                self.shared.add(value)

    def _mask(self, value: int) -> Tensor | None:
        return self.activations.values[value] if value and self.program.units[value - 1].rectify else None

    def add_convolution(
        self, value: int, geometry: ConvGeometry, index: ConvIndex, values: Tensor, g: Tensor, first_state: int
    ) -> None:
        """Add the gradient of a convolution's input; the last reader's also passes the ReLU and takes the norm's sums."""
        self.left[value] -= 1
        before, _ = self.sums.get(value, (None, None))
        dx, sums, mask, with_ = self.layout(value).empty(), None, None, None
        if value and not self.left[value]:
            sums, mask = kernels.new_sums(self.layout(value)), self._mask(value)
            with_ = self.activations.states[first_state].y
        kernels.input_gradient(geometry, index, values, g, dx, add=before, mask=mask, with_=with_, sums=sums)
        self.sums[value] = (dx, sums)
        self.shared.discard(value)

    def whole(self, value: int, first_state: int) -> tuple[Tensor, Tensor]:
        """Return a value's gradient before its ReLU, and the sums for the norm of its unit's first branch."""
        g, sums = self.sums.pop(value)
        if sums is None:
            layout, mask = self.layout(value), self._mask(value)
            g = g.clone() if value in self.shared and mask is not None else g
            sums = kernels.new_sums(layout)
            test = None if mask is None else (mask, self.geometry.values[value])
            kernels.reduce(layout, g, mask=test, with_=self.activations.states[first_state].y, sums=sums)
        return g, sums


@dataclass(frozen=True, eq=False)
class Wanted:
    """Which gradients a backward computes.

    Attributes:
        images: that of the input.
        weights: for each branch, that of its weight.
        dense: for each branch, that of every entry of its weight, not of the live ones only.
    """

    images: bool
    weights: list[bool]
    dense: list[bool]


@dataclass(frozen=True, eq=False)
class BranchGradients:
    """The gradients of a branch's parameters; None for what it has not, or where none is wanted."""

    weight: Tensor | None
    bias: Tensor | None
    norm_weight: Tensor | None
    norm_bias: Tensor | None


def run_backward(
    program: Program,
    geometry: Geometry,
    indices: list[ConvIndex],
    activations: Activations,
    given: tuple[Tensor | None, ...],
    wanted: Wanted,
) -> tuple[Tensor | None, list[BranchGradients]]:
    """The gradient of the input, and those of the branches' parameters, from those of the outputs."""
    gradients = _Gradients(program, geometry, activations)
    firsts = _first_branches(program)
    for (value, mean), g in zip(program.outputs, given, strict=True):
        layout = gradients.layout(value)
        gradients.add(value, _from_output(g, layout, mean))
    results: list[BranchGradients | None] = [None] * len(indices)
    for number in range(len(program.units), 0, -1):
        unit, first = program.units[number - 1], firsts[number - 1]
        g, sums = gradients.whole(number, first)
        if unit.added is not None and (unit.added or wanted.images):
            gradients.add(unit.added, g, shared=True)
        for place in range(first, first + len(unit.branches)):
            if place > first:
                sums = kernels.new_sums(geometry.branches[place].output)
                kernels.reduce(geometry.branches[place].output, g, with_=activations.states[place].y, sums=sums)
            results[place] = _branch_backward(
                unit.branches[place - first], place, geometry, indices[place], activations, g, sums, wanted, gradients,
                firsts,
            )  # fmt: skip
    images = None
    if wanted.images:
        images = kernels.leave(gradients.sums[0][0], gradients.layout(0))
    return images, [result for result in results if result is not None]


def _first_branches(program: Program) -> list[int]:
    """The place of each unit's first branch among all."""
    places, place = [], 0
    for unit in program.units:
        places.append(place)
        place += len(unit.branches)
    return places


def _from_output(g: Tensor | None, layout: Layout, mean: bool) -> Tensor:
    if g is None:
        return torch.zeros(layout.shape)
    if not mean:
        return kernels.enter(g, layout)
    pooled = torch.zeros(layout.blocks * LANES, layout.channels)
    torch.div(g, layout.rows * layout.columns, out=pooled[: layout.images])
    result = layout.empty()
    kernels.reduce(layout, result, pooled=pooled.view(layout.blocks, LANES, -1).transpose(1, 2).contiguous())
    return result


def _branch_backward(
    branch: Branch,
    place: int,
    geometry: Geometry,
    index: ConvIndex,
    activations: Activations,
    g: Tensor,
    sums: Tensor,
    wanted: Wanted,
    gradients: _Gradients,
    firsts: list[int],
) -> BranchGradients:
    where, state = geometry.branches[place], activations.states[place]
    conv, norm, output = branch.conv, branch.norm, where.output
    if state.normed is None:
        bias = sums[:, 0].sum(dim=(0, 2)) if conv.bias is not None else None
        norm_weight = norm_bias = None
        ones, zeros = torch.ones(output.channels), torch.zeros(output.channels)
        inner = kernels.combine(where.gradient, (g, output), ones, zeros)
    else:
        a, b, c, norm_weight, norm_bias = kernels.norm_gradient(output, sums, state.normed, state.fixed)
        bias = None if conv.bias is None else a * norm_bias if state.fixed else torch.zeros_like(conv.bias)
        inner = kernels.combine(where.gradient, (g, output), a, c, (state.y, output), b)
    weight = None
    x = activations.values[branch.source]
    if wanted.weights[place]:
        forward = index.forward
        if wanted.dense[place]:
            forward = convolution_index(torch.ones_like(conv.weight, dtype=torch.bool), where).forward
        weight = torch.zeros(conv.weight.numel())
        weight[forward.where] = kernels.weight_gradient(where, forward, inner, x)
        weight = weight.view(conv.weight.shape)
    if branch.source or wanted.images:
        first = firsts[branch.source - 1] if branch.source else 0
        gradients.add_convolution(branch.source, where, index, state.values, inner, first)
    return BranchGradients(weight, bias, norm_weight, norm_bias)
