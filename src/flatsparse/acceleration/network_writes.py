"""Operations of a traced model that write to their input, whose readers would not see it once stretches compute them."""

from __future__ import annotations

import inspect
import operator

from torch import fx, nn

from flatsparse.graph.ops import kind_of

_FRESH = ("conv", "linear", "norm", "unary", "join", "pool", "mean", "cat", "size")  # what has memory of its own
_NAMES = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor", "setitem")
_IN_PLACE = [getattr(operator, name) for name in _NAMES]


def written_and_read(graph: fx.Graph, modules: dict[str, nn.Module]) -> fx.Node | None:
    """Return the first node that writes to a value which is read again, under that or another name; None without any."""
    place = {node: number for number, node in enumerate(graph.nodes)}
    memory: dict[fx.Node, set[fx.Node]] = {}  # the nodes that made what a node's value may lie in
    for node in graph.nodes:
        writes = node.op != "output" and _writes(node, modules)
        is_fresh = not writes and (not node.all_input_nodes or kind_of(node, modules) in _FRESH)
        memory[node] = {node}.union(*(() if is_fresh else (memory[source] for source in node.all_input_nodes)))
        if writes and (not node.all_input_nodes or "out" in node.kwargs):
            return node  # what it writes to is not known
        if writes:
            written = memory[node.all_input_nodes[0]]
            same = [other for other in memory if other is not node and memory[other] & written]
            if any(place[user] > place[node] for other in same for user in other.users):
                return node
    return None


def _writes(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """True for an operation that writes to its first input, or to another of its arguments."""
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    if "out" in node.kwargs or node.target in _IN_PLACE:
        return True
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__")
    if node.op != "call_function" or not callable(node.target):
        return False
    try:
        given = inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments
    except (TypeError, ValueError):  # those of torch that are not written in Python
        given = {}
    name = getattr(node.target, "__name__", "")
    return bool(given.get("inplace")) or (name.endswith("_") and not name.endswith("__"))
