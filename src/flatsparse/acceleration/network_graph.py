"""Tracing a model whose class is accelerated, and putting runners of stretches into its graph."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from flatsparse.acceleration.network_state import Undone
from flatsparse.acceleration.network_trace import Stretch, stretches
from flatsparse.acceleration.network_writes import written_and_read
from flatsparse.sam.gradient_checks import acts_on_parts_alone

Runner = Callable[[Tensor], tuple[Tensor, ...]]
_SCALARS: frozenset[type] = frozenset({bool, type(None), int, float, str, complex, bytes, torch.dtype})
_PLAIN: tuple[type, ...] = (*_SCALARS, tuple, list)
FEWEST = 2  # convolutions in a stretch, or the changes of layout cost more than is gained


class Traced:
    """A model's graph with stretches in the place of its nodes, or why there is none."""

    def __init__(self, model: nn.Module, module: fx.GraphModule | None, reason: str = "") -> None:
        self.module, self.reason = module, reason
        self._modules = [
            (parent._modules, name, child) for parent in model.modules() for name, child in parent._modules.items()
        ]
        self._forwards = [m.__dict__.get("forward") for m in model.modules()]
        self._all = list(model.modules())

    def is_current(self) -> bool:
        """Return whether the model has the modules that were traced."""
        same = all(own.get(name) is child for own, name, child in self._modules)
        return same and [m.__dict__.get("forward") for m in self._all] == self._forwards


def settings(model: nn.Module) -> tuple[Any, ...]:
    """Return what a trace takes as fixed: modes and plain attributes of the modules, and whether gradients are recorded."""
    plain: list[Any] = []
    for module in model.modules():
        for name, value in module.__dict__.items():
            if type(value) in _SCALARS:
                plain += (name, type(value), value)
            elif isinstance(value, _PLAIN) and (frozen := _frozen(value)) is not NotImplemented:
                plain += (name, frozen)
    return torch.is_grad_enabled(), *plain


def _frozen(value: Any) -> Any:
    """A plain value, lists in it as tuples; NotImplemented for one with others in it."""
    if not isinstance(value, (tuple, list)):
        return value if isinstance(value, _PLAIN) else NotImplemented
    parts = tuple(map(_frozen, value))
    return NotImplemented if any(part is NotImplemented for part in parts) else parts


def has_hooks(module: nn.Module) -> bool:
    """True for a module whose calls run hooks, of a forward or a backward, that act within a call of the whole model too."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(not acts_on_parts_alone(hook) for some in hooks for hook in some.values())


def trace(model: nn.Module, is_masked: Callable[[Tensor], bool], runner: Callable[[Stretch], Runner]) -> Traced:
    """Return the model's graph, in which runners compute the stretches that have masked weights."""
    try:
        graph = _graph(model)
    except Exception as problem:  # a model may fail in any way when its inputs have no values
        line = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        return Traced(model, None, f"torch.fx cannot trace the model ({line})")
    found = [s for s in stretches(graph, dict(model.named_modules())) if len(s.program.branches()) >= FEWEST]
    found = [s for s in found if any(is_masked(b.conv.weight) for b in s.program.branches())]
    for stretch in found:
        _replace(graph, stretch, runner(stretch))
    if not found:
        return Traced(model, None, "no sparse convolutions follow one another in the model")
    return Traced(model, fx.GraphModule(_holder(model), graph))


def _holder(model: nn.Module) -> nn.Module:
    """A module with the model's modules and tensors, of which a graph module takes its own."""
    holder = nn.Module()
    for name in ("_modules", "_parameters", "_buffers"):
        getattr(holder, name).update(getattr(model, name))
    return holder


def _graph(model: nn.Module) -> fx.Graph:
    """A model's graph. Raises when it cannot be traced, or its forward does more than a graph says."""
    plain: Any = type(model).__mro__[1]
    kinds = [p.kind for p in list(inspect.signature(plain.forward).parameters.values())[1:]]
    if kinds != [inspect.Parameter.POSITIONAL_OR_KEYWORD]:  # torch.fx would take None for a value
        raise ValueError("its forward takes more than one input")
    with plain_class(model), Undone(model) as undone:
        graph = _Tracer().trace(model)
    if undone.drew or undone.changed or undone.wrote:
        raise ValueError("its forward draws numbers, or changes attributes")
    if any(node.op == "get_attr" for node in graph.nodes):  # which would go stale when it is replaced
        raise ValueError("its forward reads tensors by itself")
    if (node := written_and_read(graph, dict(model.named_modules()))) is not None:
        raise ValueError(f"its operation '{node}' writes to a value that is read again")
    return graph


@contextmanager
def plain_class(model: nn.Module) -> Iterator[None]:
    """Return a context in which the model is of its own class."""
    accelerated = type(model)
    model.__class__ = accelerated.__mro__[1]
    try:
        yield
    finally:
        model.__class__ = accelerated


class _Tracer(fx.Tracer):
    """A tracer that refuses what a graph does not hold: contexts in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self._mode = _mode()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _mode() != self._mode:
            raise ValueError("its forward switches gradients or autocast on or off")
        return super().create_node(*args, **kwargs)


def _mode() -> tuple[bool, ...]:
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")


def _replace(graph: fx.Graph, stretch: Stretch, runner: Runner) -> None:
    """Put a call of the runner in the place of a stretch's nodes."""
    own = set(stretch.nodes)
    with graph.inserting_before(stretch.nodes[0]):
        call = graph.call_function(runner, (stretch.source,))
        for place, (node, keeps) in enumerate(stretch.results):
            result = graph.call_function(operator.getitem, (call, place))
            if keeps:
                result = graph.call_function(torch.unflatten, (result, 1, (-1, 1, 1)))
            node.replace_all_uses_with(result, delete_user_cb=lambda user: user not in own)
    for node in reversed(stretch.nodes):
        graph.erase_node(node)
