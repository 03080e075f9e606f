"""The forward of a program, in the layout with the images of a batch innermost."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flatsparse.acceleration import conv_kernels as kernels
from flatsparse.acceleration import conv_passes as passes
from flatsparse.acceleration.conv_index import ConvGeometry, ConvIndex
from flatsparse.acceleration.conv_kernels import Combined
from flatsparse.acceleration.conv_layout import Layout, zeros
from flatsparse.acceleration.network_program import Branch, Geometry, Program, Unit


@dataclass(frozen=True, eq=False)
class BranchState:
    """What a branch's forward leaves for its backward.

    Attributes:
        values: the live weights, in the order of the index.
        y: the convolution, plus what brings its mean near 0 where a norm takes its sums.
        normed: what ``conv_passes.norm`` gave; None without a norm.
        fixed: whether that came from running statistics.
    """

    values: Tensor
    y: Tensor
    normed: Tensor | None
    fixed: bool


@dataclass(frozen=True, eq=False)
class Activations:
    """What a forward leaves for a backward.

    Attributes:
        values: of the program; those that only convolutions read are not kept but made again.
        states: of the branches, in order.
    """

    values: list[Tensor | Combined]
    states: list[BranchState]


def run_forward(program: Program, geometry: Geometry, indices: list[ConvIndex], images: Tensor) -> Activations:
    """Compute the program with what a backward needs; batch norms' running statistics are updated as torch does."""
    values: list[Tensor | Combined] = [passes.enter(images, geometry.values[0])]
    states: list[BranchState] = []
    kept = _kept(program)
    for number, unit in enumerate(program.units, 1):
        terms = []
        for branch in unit.branches:
            where, index = geometry.branches[len(states)], indices[len(states)]
            source = values[branch.source]
            state, made, scale, shift = _branch_forward(branch, where, index, source, branch.source in kept)
            values[branch.source] = source if made is None else made
            states.append(state)
            terms.append(((state.y, where.output), scale, shift))
        if unit.added is not None:
            values[unit.added] = _computed(values[unit.added])
        values.append(_combined(unit, geometry, number, terms, values))
    for value, _ in program.outputs:
        values[value] = _computed(values[value])
    return Activations(values, states)


def _kept(program: Program) -> set[int]:
    """The values that more than convolutions read, or that are sums: those are not made again."""
    kept = {0, *(value for value, _ in program.outputs)}
    for number, unit in enumerate(program.units, 1):
        if unit.added is not None:
            kept |= {unit.added, number}
        if len(unit.branches) > 1:
            kept.add(number)
    return kept


def _computed(value: Tensor | Combined) -> Tensor:
    return value.compute() if isinstance(value, Combined) else value


def _combined(
    unit: Unit,
    geometry: Geometry,
    number: int,
    terms: list[tuple[tuple[Tensor, Layout], Tensor, Tensor]],
    values: list[Tensor | Combined],
) -> Combined:
    """The value of a unit, from its branches' convolutions, scales and shifts."""
    (x, scale, shift), *others = terms
    x2, scale2 = None, None
    if others:
        x2, scale2, more = others[0]
        shift = shift + more
    elif unit.added is not None:
        x2 = (_computed(values[unit.added]), geometry.values[unit.added])
    return Combined(geometry.values[number], x, scale, shift, x2, scale2, unit.rectify)


def _branch_forward(
    branch: Branch, geometry: ConvGeometry, index: ConvIndex, x: Tensor | Combined, keep: bool
) -> tuple[BranchState, Tensor | None, Tensor, Tensor]:
    """The state of a branch, its input if that was made and kept, and the scale and shift of its norm."""
    conv, norm, output, taps = branch.conv, branch.norm, geometry.output, index.forward
    values = taps.values(conv.weight.detach())
    bias = None if conv.bias is None else conv.bias.detach()
    if norm is None:
        made = kernels.forward(geometry, taps, values, x, keep=keep)
        shift = zeros(output.channels) if bias is None else bias
        return BranchState(values, made.y, None, True), made.x, zeros(output.channels) + 1, shift
    running = None if norm.running_mean is None or norm.running_var is None else (norm.running_mean, norm.running_var)
    made = kernels.forward(geometry, taps, values, x, keep=keep, sum_up=norm.training or running is None)
    less = bias if made.shift is None else -made.shift if bias is None else bias - made.shift
    fixed = made.sums is None
    updated = running if norm.training and norm.track_running_stats else None
    factor = _update_factor(norm) if updated else 0.0
    weight, shift = (None if p is None else p.detach() for p in (norm.weight, norm.bias))
    normed = passes.norm(output, made.sums, less, weight, shift, running if fixed else updated, norm.eps, factor)
    return BranchState(values, made.y, normed, fixed), made.x, normed[0], normed[1]


def _update_factor(norm: nn.BatchNorm2d) -> float:
    """The weight of this batch in the running statistics; the batch is counted."""
    if norm.num_batches_tracked is None:
        return 0.0 if norm.momentum is None else norm.momentum
    norm.num_batches_tracked.add_(1)
    return 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum


def outputs(program: Program, geometry: Geometry, values: list[Tensor | Combined]) -> tuple[Tensor, ...]:
    """The outputs of a program, as torch has them."""
    results = []
    for value, mean in program.outputs:
        x, layout = _computed(values[value]), geometry.values[value]
        results.append(_mean(x, layout) if mean else passes.leave(x, layout))
    return tuple(results)


def _mean(value: Tensor, layout: Layout) -> Tensor:
    """The means over pixels, (N, C)."""
    total = value.sum(dim=(1, 3))  # the border is zero
    return total.div_(layout.rows * layout.columns).transpose(1, 2).flatten(0, 1)[: layout.images].contiguous()


@dataclass(frozen=True, eq=False)
class Folded:
    """A branch whose norm, of running statistics, is folded into the convolution's weights: what it adds is left."""

    index: ConvIndex
    values: Tensor
    start: Tensor | None


def folded(branch: Branch, index: ConvIndex) -> Folded:
    """Return a branch as one convolution."""
    conv, norm = branch.conv, branch.norm
    values = index.forward.values(conv.weight)
    if norm is None:
        return Folded(index, values, conv.bias)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    start = (-norm.running_mean if conv.bias is None else conv.bias - norm.running_mean) * scale
    return Folded(index, values * scale[index.forward.rows], start if norm.bias is None else start + norm.bias)


def run_evaluation(program: Program, geometry: Geometry, branches: list[Folded], images: Tensor) -> tuple[Tensor, ...]:
    """The outputs of a program of folded branches; nothing is kept for a backward."""
    values: list[Tensor | Combined] = [passes.enter(images, geometry.values[0])]
    number = 0
    for unit, target in zip(program.units, geometry.values[1:], strict=True):
        added = None if unit.added is None else (_computed(values[unit.added]), geometry.values[unit.added])
        value = kernels.cleared(target)
        for place in reversed(range(len(unit.branches))):  # the first takes the others' sum
            where, own = geometry.branches[number + place], branches[number + place]
            y, layout = (where.output.empty(), where.output) if place else (value, target)
            kernels.convolve(
                where, own.index.forward, own.values, _computed(values[unit.branches[place].source]), own.start,
                y=y, target=layout, added=added, rectify=unit.rectify and not place,
            )  # fmt: skip
            added = (y, layout)
        number += len(unit.branches)
        values.append(value)
    return outputs(program, geometry, values)
