"""Channels propagated through a traced model: the layers that write, norm and read them, and the operations that merge them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from flatsparse.common.errors import InputError
from flatsparse.common.weight_layout import inputs_first
from flatsparse.graph.ops import (
    concat_inputs,
    description,
    has_hooks,
    is_batch_size,
    kind_of,
    mean_dims,
    pool_dims,
    shared_modules,
)


@dataclass(frozen=True)
class Slot:
    """The entries of one tensor that belong to a group's channels.

    Attributes:
        name: the parameter or buffer, by its name in the model.
        dim: the dimension that is indexed.
        block: consecutive entries per channel; H·W for a linear layer after a flatten.
        offset: where the group's first channel lies along ``dim``, not 0 after a concatenation.
    """

    name: str
    dim: int
    block: int
    offset: int


@dataclass(eq=False)
class Channels:
    """A group of channels while the graph is traversed; one that was merged into an earlier group points to it."""

    size: int
    order: int
    writes: list[Slot] = field(default_factory=list)
    norms: list[Slot] = field(default_factory=list)
    reads: list[Slot] = field(default_factory=list)
    why_kept: str | None = None
    merged: Channels | None = None

    def root(self) -> Channels:
        return self if self.merged is None else self.merged.root()

    def merge(self, other: Channels) -> None:
        first, second = sorted((self.root(), other.root()), key=lambda channels: channels.order)
        if first is not second:
            first.writes += second.writes
            first.norms += second.norms
            first.reads += second.reads
            first.why_kept = first.why_kept or second.why_kept
            second.merged = first


@dataclass(frozen=True)
class Part:
    """Channels within a value. ``block`` is the name of a flatten as long as its H·W is not known."""

    channels: Channels
    block: int | str = 1


@dataclass(frozen=True)
class Value:
    """A node's output: its channels in order along ``axis``, 1 or -1; ``rank`` is None where only the last is known."""

    parts: tuple[Part, ...]
    rank: int | None
    axis: int = 1

    @property
    def size(self) -> int:
        return sum(part.channels.size for part in self.parts)


class Unsupported(Exception):
    """An operation whose effect on channels is not known; its message becomes the reason to keep them."""


class Trace:
    """A model's graph in evaluation mode, and the channels of every node's value.

    Attributes:
        graph, modules: of ``torch.fx``; modules by name.
        values: by node; None where there are no channels to propagate.
        blocks: the H·W of each flatten, by its name, where layers after it determine it.
    """

    def __init__(self, model: nn.Module, example: Tensor | None = None) -> None:
        self.graph = _graph(model, example)
        self.modules = dict(model.named_modules())
        self.values: dict[fx.Node, Value | None] = {}
        self.blocks: dict[str, int] = {}
        self._created: list[Channels] = []
        self._shared = shared_modules(self.graph, self.modules)
        for node in self.graph.nodes:
            try:
                self.values[node] = self._propagate(node)
            except Unsupported as reason:
                self.values[node] = None
                for source in node.all_input_nodes:
                    self._keep(source, str(reason))

    def channels(self) -> list[Channels]:
        """The groups of channels, in the order in which they are first written."""
        return [channels for channels in self._created if channels.merged is None]

    def block(self, part: Part) -> int:
        """Consecutive features per channel."""
        if isinstance(part.block, int):
            return part.block
        if part.block not in self.blocks:
            raise Unsupported("its size after a flatten cannot be told; an example input would tell")
        return self.blocks[part.block]

    def _keep(self, node: fx.Node, reason: str) -> None:
        value = self.values[node]
        for part in value.parts if value else ():
            root = part.channels.root()
            root.why_kept = root.why_kept or reason

    def _propagate(self, node: fx.Node) -> Value | None:
        if node.op in ("placeholder", "get_attr"):
            return None
        if node.op == "output":
            raise Unsupported("the model's output")
        kind, error = kind_of(node, self.modules), Unsupported(f"{description(node, self.modules)} is not understood")
        if kind is not None and node.op == "call_module" and has_hooks(self.modules[str(node.target)]):
            raise Unsupported(f"{description(node, self.modules)} has a hook, which may change what it gives")
        sources = concat_inputs(node) if kind == "cat" else node.all_input_nodes
        inputs = [self.values[source] for source in sources if not is_batch_size(source)]
        if kind in ("conv", "linear", "norm"):
            if str(node.target) in self._shared:
                raise Unsupported(f"the weights of '{node.target}' are used more than once")
            return getattr(self, f"_{kind}")(node, inputs[0])
        if kind is None:
            raise error
        if kind == "size" or not any(inputs):
            return None
        if not all(inputs):
            raise Unsupported("joined with what no layer gives")
        values = [value for value in inputs if value is not None]
        if kind == "cat":
            return _cat(node, values, error)
        if kind == "join":
            return self._join(values)
        value = values[0]
        if kind in ("unary", "same"):
            return value
        if value.axis != 1 or value.rank is None or (value.rank == 2 and kind != "flatten"):
            raise error
        if kind == "flatten":
            return self._flatten(node, value)
        if kind == "pool" and value.rank != pool_dims(node, self.modules) + 2:  # torch takes the batch for channels
            raise error
        return _mean(node, value, error) if kind == "mean" else value

    def _conv(self, node: fx.Node, value: Value | None) -> Value:
        conv: Any = self.modules[str(node.target)]
        rank = conv.weight.ndim
        if value is not None and (value.axis != 1 or value.rank != rank or value.size != conv.in_channels):
            raise Unsupported(f"the input of convolution '{node.target}' is not understood")
        if conv.groups == 1:
            self._read(node, value)
            return Value((Part(self._written(node, conv.out_channels)),), rank)
        if conv.groups == conv.in_channels == conv.out_channels and value is not None:  # depthwise
            for offset, part in self._resolved(value, conv.in_channels):
                part.channels.root().writes += self._slots(node, ("weight", "bias"), offset=offset)
            return value
        reason = f"convolution '{node.target}' is grouped"
        if value is not None:
            self._keep(node.all_input_nodes[0], reason)
        written = self._written(node, conv.out_channels)
        written.why_kept = reason
        return Value((Part(written),), rank)

    def _linear(self, node: fx.Node, value: Value | None) -> Value:
        linear: Any = self.modules[str(node.target)]
        if value is not None and value.rank != 2 and value.axis != -1:
            raise Unsupported(f"linear layer '{node.target}' does not work on channels")
        rank = _rank(node, value.rank if value else None)
        self._read(node, value)
        return Value((Part(self._written(node, linear.out_features)),), rank, 1 if rank == 2 else -1)

    def _norm(self, node: fx.Node, value: Value | None) -> Value | None:
        if value is None:
            return None
        norm: Any = self.modules[str(node.target)]
        names = [name for name in ("weight", "bias", "running_mean", "running_var") if getattr(norm, name) is not None]
        if (value.axis != 1 and value.rank is not None) or not names:  # one without tensors cannot be narrowed
            raise Unsupported(f"batch norm '{node.target}' is not over channels")
        for offset, part in self._resolved(value, norm.num_features):
            slots = self._slots(node, names, self.block(part), offset)
            part.channels.root().norms += slots
        return Value(value.parts, value.rank or 2)

    def _join(self, values: Sequence[Value]) -> Value:
        first, *others = values
        for other in others:
            pairs = list(zip(first.parts, other.parts, strict=False))
            last = all(value.rank in (None, 2) for value in (first, other))  # broadcasting aligns last dimensions
            alike = last or (first.rank, first.axis) == (other.rank, other.axis)
            blocks = len(pairs) == 1 or all(a.block == b.block for a, b in pairs)
            sizes = [[part.channels.size for part in value.parts] for value in (first, other)]
            if not (alike and blocks and sizes[0] == sizes[1]):
                raise Unsupported("joined with channels of another arrangement")
            for a, b in pairs:
                a.channels.merge(b.channels)
            if other.rank is None:
                first = other
        return first

    def _flatten(self, node: fx.Node, value: Value) -> Value:
        if value.rank == 2:
            return value
        shape = node.all_input_nodes[0].meta.get("tensor_meta")
        block = node.name if shape is None else math.prod(shape.shape[2:])
        return Value(tuple(Part(part.channels, block) for part in value.parts), 2)

    def _read(self, node: fx.Node, value: Value | None) -> None:
        if value is not None:
            module: Any = self.modules[str(node.target)]
            dim = 0 if inputs_first(module) == 1 else 1
            for offset, part in self._resolved(value, module.weight.shape[dim]):
                part.channels.root().reads += self._slots(node, ("weight",), self.block(part), offset, dim)

    def _written(self, node: fx.Node, size: int) -> Channels:
        dim = 1 if inputs_first(self.modules[str(node.target)]) == 1 else 0
        slots = self._slots(node, ("weight",), dim=dim) + self._slots(node, ("bias",))
        written = Channels(size, len(self._created), slots)
        self._created.append(written)
        return written

    def _resolved(self, value: Value, features: int) -> list[tuple[int, Part]]:
        """Each part with its first index among the features, whose number determines the H·W of a flatten."""
        unknown = {part.block for part in value.parts if part.block not in self.blocks and isinstance(part.block, str)}
        if len(unknown) == 1:
            known = sum(part.channels.size * self.block(part) for part in value.parts if part.block not in unknown)
            channels = sum(part.channels.size for part in value.parts if part.block in unknown)
            self.blocks[str(*unknown)] = (features - known) // channels
        sizes = [part.channels.size * self.block(part) for part in value.parts]
        if sum(sizes) != features:
            raise Unsupported("their number is not what the layer after them takes")
        return [(sum(sizes[:index]), part) for index, part in enumerate(value.parts)]

    def _slots(self, node: fx.Node, names: Sequence[str], block: int = 1, offset: int = 0, dim: int = 0) -> list[Slot]:
        module = self.modules[str(node.target)]
        prefix = f"{node.target}."
        return [Slot(prefix + name, dim, block, offset) for name in names if getattr(module, name, None) is not None]


def _graph(model: nn.Module, example: Tensor | None) -> fx.Graph:
    modes = {module: module.training for module in model.modules()}
    try:
        graph = fx.Tracer().trace(model.eval())
        if example is not None:
            _propagate_shapes(fx.GraphModule(model, graph), example)
    except InputError:
        raise
    except Exception as problem:  # a model may fail in any way when its inputs have no values
        line = str(problem).strip().partition("\n")[0]
        raise InputError(
            f"channels of {type(model).__name__} cannot be followed, as torch.fx cannot trace it ({line}): choose another"
            " model, or write what depends on the input's values as a module of its own"
        ) from None
    finally:
        for module, training in modes.items():
            module.training = training
    return graph


@torch.no_grad()
def _propagate_shapes(model: fx.GraphModule, example: Tensor) -> None:
    try:
        ShapeProp(model).propagate(example)
    except Exception:
        raise InputError(
            f"the example {tuple(example.shape)} is no input of the model: give one that it takes"
        ) from None


def _rank(node: fx.Node, rank: int | None) -> int | None:
    shape = node.meta.get("tensor_meta")
    return rank if shape is None else len(shape.shape)


def _mean(node: fx.Node, value: Value, error: Unsupported) -> Value:
    assert value.rank is not None
    dims, keep = mean_dims(node)
    space = {dim % value.rank for dim in dims or (0,)}
    if space & {0, 1}:
        raise error
    return value if keep else Value(value.parts, value.rank - len(space))


def _cat(node: fx.Node, values: Sequence[Value], error: Unsupported) -> Value:
    axis: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    first = values[0]
    alike = all((value.rank, value.axis) == (first.rank, first.axis) for value in values)
    along = axis == first.axis or (first.rank is not None and (axis - first.axis) % first.rank == 0)
    if not (alike and along):
        raise error
    return Value(tuple(part for value in values for part in value.parts), first.rank, first.axis)
