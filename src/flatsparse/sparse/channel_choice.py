"""The channels of a net that a method may prune: all that can be taken out alone, or those that a paper's code prunes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn

from flatsparse.common.errors import unknown
from flatsparse.graph.groups import Group, channel_groups, unwrapped
from flatsparse.graph.ops import kind_of, shared_modules
from flatsparse.graph.trace import Slot, Trace

Eligible = Callable[[nn.Module], Sequence[Group]]


def removable(model: nn.Module) -> list[Group]:
    """Return the channels that can be taken out and that one layer writes, depthwise convolutions not counted."""
    modules = dict(unwrapped(model).named_modules())
    return [group for group in with_residual_channels(model) if len(_writers(group, modules)) == 1]


def with_residual_channels(model: nn.Module) -> list[Group]:
    """Return the channels that can be taken out, residual channels too, which several layers write."""
    return [group for group in channel_groups(model) if group.why_kept is None and group.reads]


def between_convolutions(model: nn.Module) -> list[Group]:
    """Return the removable channels that one convolution writes for one other, and those of linear layers.

    Chase's code (Yin et al. 2023) splits these: conv1 and conv2 of a bottleneck, conv1 of a basic block, and all
    convolutions of VGG-19 but the last, which a linear layer reads. The stem of a ResNet, which either two layers read or
    which is part of the residual stream, stays. That linear layers between linear layers count too is ours.
    """
    modules = dict(unwrapped(model).named_modules())

    def kinds(slots: Sequence[Slot]) -> list[bool]:
        return [isinstance(_module(slot, modules), nn.Linear) for slot in slots if slot.name.endswith("weight")]

    return [g for g in removable(model) if all(kinds(g.writes)) or kinds(g.reads) == [False]]


def blocks_and_shortcuts(model: nn.Module) -> list[Group]:
    """Return the removable channels but those of the first convolution, and the outputs of convolutions in shortcuts.

    CHEX's code (Hou et al. 2022) explores these in a ResNet-50: conv1 and conv2 of each bottleneck and the shortcuts'
    convolutions, 11,392 channels in all, but neither the stem nor conv3.
    """
    trace = Trace(unwrapped(model))
    before = _ancestors(trace.graph)
    kinds = {node: kind for node in trace.graph.nodes if (kind := kind_of(node, trace.modules)) in ("conv", "linear")}
    stems = {f"{n.target}.weight" for n, kind in kinds.items() if kind == "conv" and before[n].isdisjoint(kinds)}
    inner = [group for group in removable(model) if stems.isdisjoint(slot.name for slot in group.writes)]
    return inner + _shortcuts(trace, before)


def eligible(explore: str, sums: bool, published: Eligible) -> Eligible:
    """Return what chooses the channels, by the options of a method.

    Args:
        explore: ``published`` or ``removable``.
        sums: residual channels too: all that can be taken out, whatever ``explore`` says.
        published: chooses what its paper's code explores.

    Raises: InputError for another name.
    """
    choices = {"published": published, "removable": removable}
    if explore not in choices:
        raise unknown("choice of channels explore=", explore, choices)
    return with_residual_channels if sums else choices[explore]


def _shortcuts(trace: Trace, before: dict[fx.Node, set[fx.Node]]) -> list[Group]:
    """Return the outputs of convolutions that are added to what several later ones make of the same input.

    They are groups without a reader: such a channel cannot be taken out, because the sum goes on without it. It can be 0,
    if the batch norms behind the convolution have weights and biases to be 0 as well.
    """
    twice, groups = shared_modules(trace.graph, trace.modules), {}
    for total in trace.graph.nodes:
        for term in total.all_input_nodes if _adds(total) else ():
            path = _path(term, trace)
            if not path or any(str(node.target) in twice for node in path):
                continue
            conv, *norms = path
            source = conv.all_input_nodes[0]
            while kind_of(source, trace.modules) in ("pool", "same"):  # as in a ResNet-D
                source = source.all_input_nodes[0]
            others = {node for other in total.all_input_nodes if other is not term for node in before[other] | {other}}
            between = [n for n in others if kind_of(n, trace.modules) == "conv" and source in before[n]]
            if len(between) > 1:
                groups[str(conv.target)] = Group(
                    trace.modules[str(conv.target)].out_channels,
                    _slots(conv, ("weight", "bias"), trace),
                    tuple(
                        s for n in norms for s in _slots(n, ("weight", "bias", "running_mean", "running_var"), trace)
                    ),
                    (),
                    None,
                )
    return list(groups.values())


def _path(term: fx.Node, trace: Trace) -> list[fx.Node]:
    """Return a convolution and the batch norms through which it alone gives a term; empty for terms of another kind."""
    path = [term]
    while kind_of(path[0], trace.modules) == "norm":
        norm: Any = trace.modules[str(path[0].target)]
        if norm.weight is None or len(path[0].users) > 1:
            return []
        path.insert(0, path[0].all_input_nodes[0])
    conv = path[0]
    plain = kind_of(conv, trace.modules) == "conv" and trace.modules[str(conv.target)].groups == 1
    return path if plain and len(conv.users) == 1 else []


def _adds(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in ("add", "add_")
    return node.op == "call_function" and node.target in (operator.add, operator.iadd, torch.add)


def _ancestors(graph: fx.Graph) -> dict[fx.Node, set[fx.Node]]:
    """Return the nodes that each is computed from."""
    ancestors: dict[fx.Node, set[fx.Node]] = {}
    for node in graph.nodes:
        ancestors[node] = set().union(*(ancestors[source] | {source} for source in node.all_input_nodes))
    return ancestors


def _slots(node: fx.Node, names: Sequence[str], trace: Trace) -> tuple[Slot, ...]:
    module = trace.modules[str(node.target)]
    return tuple(Slot(f"{node.target}.{n}", 0, 1, 0) for n in names if getattr(module, n, None) is not None)


def _module(slot: Slot, modules: dict[str, nn.Module]) -> nn.Module:
    return modules[slot.name.rpartition(".")[0]]


def _writers(group: Group, modules: dict[str, nn.Module]) -> list[Slot]:
    """Return the weights that write a group, but for depthwise convolutions."""
    own = (slot for slot in group.writes if slot.name.endswith("weight"))
    return [slot for slot in own if getattr(_module(slot, modules), "groups", 1) == 1]
