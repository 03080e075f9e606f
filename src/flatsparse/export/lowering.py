"""Int8 programs lowered to a backend of executorch. Needs the extra ``edge``."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from flatsparse.common.errors import InputError
from flatsparse.export.extras import needed, quiet, reason
from flatsparse.export.int8 import EXTRA, Int8


@dataclass(frozen=True)
class Lowered:
    """A program of executorch.

    Attributes:
        pte: what its file holds; for one sample at a time.
        graph: the program as torch sees it, with calls of the parts that the backend runs.
        on_cpu: how many operators of each kind are left to the CPU; the rounding of inputs and outputs is not counted.
    """

    pte: bytes
    graph: fx.GraphModule
    on_cpu: dict[str, int]


def lower(int8: Int8, partitioner: Any, backend: str) -> Lowered:
    """Lower an int8 program; ``backend`` is its name for people. Raises InputError when executorch cannot."""
    exir = needed("executorch.exir", EXTRA)
    with quiet():
        try:
            program = torch.export.export(int8.one, (int8.sample,), strict=True)
            edge = exir.to_edge_transform_and_lower(program, partitioner=[partitioner])
            graph = edge.exported_program().module(check_guards=False)
            return Lowered(edge.to_executorch().buffer, graph, _on_cpu(graph))
        except (Exception, SystemExit) as problem:  # Vela ends the process on some errors
            raise InputError(f"executorch cannot lower this network to {backend} ({reason(problem)})") from problem


def is_delegate(node: fx.Node) -> bool:
    """Return if a node of a lowered program calls a part that the backend runs."""
    return node.op == "call_function" and node.target is torch.ops.higher_order.executorch_call_delegate


def _on_cpu(graph: fx.GraphModule) -> dict[str, int]:
    found: Counter[str] = Counter()
    for node in graph.graph.nodes:
        name = getattr(node.target, "__name__", str(node.target))
        if node.op == "call_function" and not is_delegate(node) and name != "getitem" and not _at_the_border(node):
            found[name] += 1
    return dict(sorted(found.items()))


def _at_the_border(node: fx.Node) -> bool:
    """Return if a node rounds the program's input to int8, or makes floats of its int8 outputs."""
    name = str(node.target)
    if "dequantize" in name:
        return all(user.op == "output" for user in node.users)
    return "quantize" in name and node.all_input_nodes[0].op == "placeholder"
