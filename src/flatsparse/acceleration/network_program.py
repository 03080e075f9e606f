"""Programs: a stretch of a network as convolutions with batch norm, additions and ReLU, and the layouts that it runs in."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from flatsparse.acceleration.conv_index import ConvGeometry, convolution_geometry
from flatsparse.acceleration.conv_layout import Layout


@dataclass(frozen=True, eq=False)
class Branch:
    """A convolution of one value, and its batch norm."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d | None
    source: int


@dataclass(frozen=True, eq=False)
class Unit:
    """The sum of one branch and another, or one branch and an earlier value, or one alone; rectified where asked.

    Unit i makes value i + 1; value 0 is the program's input.
    """

    branches: tuple[Branch, ...]
    added: int | None
    rectify: bool


@dataclass(frozen=True, eq=False)
class Program:
    """Units in order, and what leaves: values, as images or as their means over pixels.

    Attributes:
        units: each reads values made before it.
        outputs: pairs of a value and whether its mean over pixels is meant.
    """

    units: tuple[Unit, ...]
    outputs: tuple[tuple[int, bool], ...]

    def branches(self) -> list[Branch]:
        """Return the branches of all units, in order."""
        return [branch for unit in self.units for branch in unit.branches]

    def readers(self) -> list[int]:
        """Return how many times each value is read, by units or as an output."""
        counts = [0] * (len(self.units) + 1)
        reads = [branch.source for branch in self.branches()]
        reads += [unit.added for unit in self.units if unit.added is not None]
        for value in (*reads, *(value for value, _ in self.outputs)):
            counts[value] += 1
        return counts


@dataclass(frozen=True, eq=False)
class Geometry:
    """The layouts of a program for one shape of input: those of its values, and of each branch, in order."""

    values: tuple[Layout, ...]
    branches: tuple[ConvGeometry, ...]


def program_geometry(program: Program, shape: tuple[int, int, int, int]) -> Geometry | None:
    """Return the layouts for an (N, C, H, W) input, or None where the program cannot take it."""
    pads = [0] * (len(program.units) + 1)
    for branch in program.branches():
        pads[branch.source] = max(pads[branch.source], *padding(branch.conv))
    values = [Layout(*shape, pads[0])]
    branches = []
    for number, unit in enumerate(program.units, 1):
        sizes = []
        for branch in unit.branches:
            source, conv = values[branch.source], branch.conv
            border, kernel = padding(conv), (conv.kernel_size[0], conv.kernel_size[1])
            fits = source.rows + 2 * border[0] >= kernel[0] and source.columns + 2 * border[1] >= kernel[1]
            if source.channels != conv.in_channels or not fits:
                return None
            branches.append(convolution_geometry(source, conv.out_channels, kernel, conv.stride[0], border))
            sizes.append(branches[-1].output)
        if unit.added is not None:
            added = values[unit.added]
            sizes.append(Layout(added.images, added.channels, added.rows, added.columns))
        if any(size != sizes[0] for size in sizes):  # torch would broadcast, or refuse
            return None
        values.append(Layout(sizes[0].images, sizes[0].channels, sizes[0].rows, sizes[0].columns, pads[number]))
    return Geometry(tuple(values), tuple(branches))


def padding(conv: nn.Conv2d) -> tuple[int, int]:
    """The padding of rows and columns, in pixels."""
    assert not isinstance(conv.padding, str)
    return conv.padding[0], conv.padding[1]
