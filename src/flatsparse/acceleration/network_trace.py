"""Stretches of a traced model that programs can run: convolutions, batch norms, additions and ReLUs, up to a mean over pixels."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from flatsparse.acceleration.conv_structures import PHASES
from flatsparse.acceleration.modules import Conv2d
from flatsparse.acceleration.network_program import Branch, Program, Unit
from flatsparse.graph.ops import has_plain_tensors, is_in_place, kind_of, mean_dims

_RELU = (F.relu, torch.relu, torch.relu_, "relu", "relu_", nn.ReLU)
_ADD = (operator.add, operator.iadd, torch.add, "add", "add_")


@dataclass(frozen=True, eq=False)
class Stretch:
    """A part of a graph that reads one value, and the program that computes it.

    Attributes:
        source: the node of its input.
        nodes: its nodes, in order.
        program: what they compute.
        results: the nodes of the program's outputs that others read, and whether each keeps dimensions of size 1.
    """

    source: fx.Node
    nodes: list[fx.Node]
    program: Program
    results: list[tuple[fx.Node, bool]]


@dataclass(eq=False)
class _Open:
    """A stretch while it grows.

    Attributes:
        values: nodes whose value a unit made, or the source's.
        sums: nodes that are the branches and the value of a unit that is not complete: a ReLU may follow.
        means: nodes that are means of a value, and whether they keep dimensions.
    """

    source: fx.Node
    nodes: list[fx.Node] = field(default_factory=list)
    units: list[Unit] = field(default_factory=list)
    values: dict[fx.Node, int] = field(default_factory=dict)
    sums: dict[fx.Node, tuple[tuple[Branch, ...], int | None]] = field(default_factory=dict)
    means: dict[fx.Node, tuple[int, bool]] = field(default_factory=dict)

    def value(self, node: fx.Node) -> int | None:
        """Return the value of a node, for which a sum becomes a unit; None when it has none."""
        if node in self.sums:
            self.complete(node, node, rectify=False)
        return 0 if node is self.source else self.values.get(node)

    def complete(self, sum_node: fx.Node, node: fx.Node, rectify: bool) -> None:
        branches, added = self.sums.pop(sum_node)
        self.units.append(Unit(branches, added, rectify))
        self.values[node] = len(self.units)

    def closed(self) -> Stretch:
        own = set(self.nodes)
        for node in [node for node in self.sums if not own.issuperset(node.users)]:
            self.complete(node, node, rectify=False)
        outputs, results = [], []
        for node in self.nodes:
            if (node in self.values or node in self.means) and not own.issuperset(node.users):
                value, keeps = self.means.get(node, (self.values.get(node, 0), False))
                outputs.append((value, node in self.means))
                results.append((node, keeps))
        return Stretch(self.source, self.nodes, Program(tuple(self.units), tuple(outputs)), results)


def stretches(graph: fx.Graph, modules: dict[str, nn.Module]) -> list[Stretch]:
    """Return the stretches of a graph, each as long as it can be; every node belongs to one at most."""
    opened: list[_Open] = []
    home: dict[fx.Node, _Open] = {}
    for node in graph.nodes:
        stretch = next((home[source] for source in node.all_input_nodes if source in home), None)
        if stretch is None or not _take(node, stretch, modules):
            stretch = _begin(node, opened, modules)
        if stretch is not None:
            stretch.nodes.append(node)
            home[node] = stretch
    closed = [stretch.closed() for stretch in opened]
    return [stretch for stretch in closed if all(node.users for node in stretch.nodes)]


def _begin(node: fx.Node, opened: list[_Open], modules: dict[str, nn.Module]) -> _Open | None:
    """The stretch that begins with a convolution, or another that reads the same value."""
    conv = _module(node, modules)
    if not isinstance(conv, nn.Conv2d) or not _is_plain(node, modules):
        return None
    source = node.all_input_nodes[0]
    stretch = next((other for other in opened if other.source is source), None)
    if stretch is None:
        stretch = _Open(source)
        opened.append(stretch)
    stretch.sums[node] = (Branch(conv, None, 0),), None
    return stretch


def _take(node: fx.Node, stretch: _Open, modules: dict[str, nn.Module]) -> bool:
    """Add a node to the stretch of its inputs. Returns whether that can be."""
    module, inputs = _module(node, modules), node.all_input_nodes
    if isinstance(module, nn.Conv2d) and _is_plain(node, modules):
        value = stretch.value(inputs[0])
        if value is not None:
            stretch.sums[node] = (Branch(module, None, value),), None
        return value is not None
    if isinstance(module, nn.BatchNorm2d) and _is_plain(node, modules):
        return _take_norm(node, module, stretch)
    if isinstance(module, nn.Identity) or _callee(node, modules) in _RELU:
        return len(inputs) == 1 and _take_unary(node, inputs[0], stretch, rectify=not isinstance(module, nn.Identity))
    if node.target in _ADD:
        return _take_sum(node, stretch, modules)
    keeps = _keeps_after_mean(node, modules)
    value = None if keeps is None else stretch.value(inputs[0])
    if value is None or keeps is None or value == 0:
        return False
    stretch.means[node] = value, keeps
    return True


def _module(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    return modules[str(node.target)] if node.op == "call_module" else None


def _callee(node: fx.Node, modules: dict[str, nn.Module]) -> Any:
    return type(_module(node, modules)) if node.op == "call_module" else node.target


def _is_plain(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """True for a convolution or batch norm that the kernels compute as torch does."""
    module: Any = _module(node, modules)
    if len(node.all_input_nodes) != 1 or not has_plain_tensors(module):
        return False
    if type(module) is nn.BatchNorm2d:
        return True
    plain = type(module) in (nn.Conv2d, Conv2d) and module.groups == 1 and module.padding_mode == "zeros"
    plain = plain and module.dilation == (1, 1) and not isinstance(module.padding, str)
    return plain and module.stride[0] == module.stride[1] and module.stride[0] ** 2 <= PHASES


def _take_norm(node: fx.Node, norm: nn.BatchNorm2d, stretch: _Open) -> bool:
    source = node.all_input_nodes[0]
    if source not in stretch.sums or len(source.users) > 1:
        return False
    branches, added = stretch.sums[source]
    (branch, *others) = branches
    if others or added is not None or branch.norm is not None or branch.conv.out_channels != norm.num_features:
        return False
    del stretch.sums[source]
    stretch.sums[node] = (Branch(branch.conv, norm, branch.source),), None
    return True


def _take_unary(node: fx.Node, source: fx.Node, stretch: _Open, rectify: bool) -> bool:
    """Add a ReLU, which completes a unit, or an identity."""
    if source in stretch.sums and len(source.users) == 1:
        if rectify:
            stretch.complete(source, node, rectify=True)
        else:
            stretch.sums[node] = stretch.sums.pop(source)
        return True
    value = None if rectify else stretch.value(source)
    if value is not None:
        stretch.values[node] = value
    return value is not None


def _take_sum(node: fx.Node, stretch: _Open, modules: dict[str, nn.Module]) -> bool:
    """Add an addition of two branches, or of one branch and a value."""
    if node.kwargs or len(node.args) != 2 or len(node.all_input_nodes) != 2:
        return False
    first, second = node.all_input_nodes
    free = [n for n in (first, second) if n in stretch.sums and len(n.users) == 1 and _is_one_branch(stretch.sums[n])]
    if not free or (is_in_place(node, modules) and free[0] is not node.args[0]):
        return False
    if len(free) == 2:
        branches = stretch.sums.pop(first)[0] + stretch.sums.pop(second)[0]
        stretch.sums[node] = branches, None
        return True
    other = second if free[0] is first else first
    value = stretch.value(other)
    if value is None:
        return False
    stretch.sums[node] = stretch.sums.pop(free[0])[0], value
    return True


def _is_one_branch(sum_: tuple[tuple[Branch, ...], int | None]) -> bool:
    return len(sum_[0]) == 1 and sum_[1] is None


def _keeps_after_mean(node: fx.Node, modules: dict[str, nn.Module]) -> bool | None:
    """Whether a mean over all pixels keeps their dimensions; None for what is no such mean."""
    kind, module = kind_of(node, modules), _module(node, modules)
    if isinstance(module, nn.AdaptiveAvgPool2d) and kind == "pool":
        return True if module.output_size in (1, (1, 1), [1, 1]) else None
    if node.op == "call_function" and node.target is F.adaptive_avg_pool2d and len(node.args) == 2 and not node.kwargs:
        return True if node.args[1] in (1, (1, 1), [1, 1]) else None
    if kind == "mean" and "dtype" not in node.kwargs:
        dims, keeps = mean_dims(node)
        return keeps if dims is not None and {dim % 4 for dim in dims} == {2, 3} else None
    return None
