"""Networks whose convolutions compute sparse, with what lies between them, in one layout."""

from __future__ import annotations

import copyreg
import functools
import inspect
import operator
import random
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from flatsparse.acceleration import products
from flatsparse.acceleration.conv_layout import LANES
from flatsparse.acceleration.layers import _is_transformed
from flatsparse.acceleration.network_function import Runner
from flatsparse.acceleration.network_program import Program
from flatsparse.acceleration.network_trace import Stretch, stretches
from flatsparse.common.distributed import PLAIN
from flatsparse.sparse.masks import MaskedWeight

SAVED_AS = "_flatsparse_network"  # the module's attribute that is left out of copies and pickles
DENSEST = 0.2  # the share of live weights, counted by the products they take part in, above which dense is as fast
FEWEST = 2  # convolutions in a stretch, or the changes of layout cost more than is gained


class AcceleratedNetwork:
    """A model whose convolutions compute sparse, in stretches. See ``accelerate_network``.

    Attributes:
        does: for each masked weight of a convolution, "sparse", or "dense: " and why; as of the last call.
    """

    def __init__(
        self,
        model: nn.Module,
        masked: dict[nn.Parameter, MaskedWeight],
        wants_dense: Callable[[], bool],
        is_active: Callable[[], bool],
    ) -> None:
        self.does = {w.name: "dense: it was not called yet" for w in masked.values() if w.weight.ndim == 4}
        self._masked, self._wants_dense, self.is_active = masked, wants_dense, is_active
        self._model = weakref.ref(model)
        self._class = type(model)
        self._graphs: dict[tuple[bool, ...], _Traced | None] = {}  # by the modules' modes
        model.__class__ = _accelerated_class(self._class)
        model.__dict__[SAVED_AS] = self

    def restore(self) -> None:
        """Let the model compute as before."""
        model = self._model()
        if model is not None and model.__dict__.get(SAVED_AS) is self:
            model.__class__ = self._class
            del model.__dict__[SAVED_AS]
        self.does = dict.fromkeys(self.does, "dense: it was restored")

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what the model gives, or NotImplemented where it should be called densely."""
        model = self._model()
        assert model is not None
        if any(type(value) is not Tensor for value in (*args, *kwargs.values())):  # such as a tracer's
            return NotImplemented
        if reason := self._unfit(model):
            self.note_all(f"dense: {reason}")
            return NotImplemented
        modes = tuple(module.training for module in model.modules())
        traced = self._graphs.get(modes)
        if traced is None or not traced.is_current():
            traced = self._graphs[modes] = _trace(model, self)
        if traced.module is None:
            self.note_all(f"dense: {traced.reason}")
            return NotImplemented
        return traced.module(*args, **kwargs)

    def _unfit(self, model: nn.Module) -> str | None:
        """Why the model is called densely now; None when it need not be."""
        if not self.is_active():
            return "its masks are kept no longer"
        if not products.is_compiled():
            return "the kernels are not compiled here"
        if torch.is_autocast_enabled("cpu"):
            return "autocast is on, and the kernels are for float32"
        if nn.modules.module._global_forward_pre_hooks or nn.modules.module._global_forward_hooks:
            return "a hook on all modules needs them to be called"
        if any(_has_hooks(module) for module in model.modules() if module is not model):
            return (
                "a hook on one of its modules needs it to be called"  # such as those of the steps that S2SAM inspects
            )
        return None

    def note_all(self, what: str) -> None:
        """Take down what all weights do."""
        self.does = dict.fromkeys(self.does, what)

    def note(self, program: Program, what: str) -> None:
        """Take down what the weights of a program do."""
        for branch in program.branches():
            masked = self._masked.get(branch.conv.weight)
            if masked is not None:
                self.does[masked.name] = what

    def mask(self, weight: nn.Parameter) -> Tensor | None:
        masked = self._masked.get(weight)
        return None if masked is None else masked.mask

    def live(self, weight: nn.Parameter) -> int:
        """Return the number of live entries of a weight."""
        masked = self._masked.get(weight)
        return weight.numel() if masked is None else masked.active

    def runner(self, stretch: Stretch) -> _StretchRunner:
        return _StretchRunner(self, stretch, Runner(stretch.program, self.mask, self._wants_dense))


class _StretchRunner:
    """Computes a stretch sparse where it can and pays, else by its own modules."""

    def __init__(self, network: AcceleratedNetwork, stretch: Stretch, runner: Runner) -> None:
        self.network, self.program, self.runner = network, stretch.program, runner
        self.__name__ = "accelerated_stretch"  # in the traced graph

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        if reason := self._unfit(images):
            self.network.note(self.program, f"dense: {reason}")
            return _dense(self.program, images)
        self.network.note(self.program, "sparse")
        return self.runner(images)

    def _unfit(self, images: Tensor) -> str | None:
        if images.ndim != 4 or not images.numel():
            return "it was called without images"
        for t in (images, *self.runner.tensors()):
            if type(t) not in PLAIN or t.is_nested or t.layout is not torch.strided:
                return "it was called with tensors of another kind"
            if not t.is_cpu or t.dtype not in (torch.float32, torch.bool) or (t.ndim == 1 and not t.is_contiguous()):
                return "the kernels are for float32 on the CPU"
        geometry = self.runner.geometry(images)
        if geometry is None:
            return "its input has another size than its layers take"
        if any(_one_value(b.norm, g.output.images * g.output.rows * g.output.columns) for b, g in
               zip(self.program.branches(), geometry.branches, strict=True)):  # fmt: skip
            return "a batch norm gets one value a channel"
        products, live = 0, 0.0
        for branch, where in zip(self.program.branches(), geometry.branches, strict=True):
            pixels, weight = where.output.rows * where.output.columns, branch.conv.weight
            products += pixels * weight.numel()
            live += pixels * self.network.live(weight)
        filled = geometry.values[0].blocks * LANES / len(images)
        share = live / products
        if share * filled > DENSEST:
            return f"{share:.0%} of the products are of live weights, in a batch of {len(images)}: too many to pay"
        return None


def _one_value(norm: nn.BatchNorm2d | None, values: int) -> bool:
    return norm is not None and norm.training and values == 1


def _dense(program: Program, images: Tensor) -> tuple[Tensor, ...]:
    """What a program computes, by its modules."""
    values = [images]
    for unit in program.units:
        terms = [b.conv(values[b.source]) for b in unit.branches]
        terms = [t if b.norm is None else b.norm(t) for t, b in zip(terms, unit.branches, strict=True)]
        total = terms[0] if len(terms) == 1 else terms[0] + terms[1]
        total = total if unit.added is None else total + values[unit.added]
        values.append(F.relu(total) if unit.rectify else total)
    return tuple(values[value].mean((2, 3)) if mean else values[value] for value, mean in program.outputs)


class _Traced:
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


def _has_hooks(module: nn.Module) -> bool:
    """True for a module whose calls run hooks, of a forward or a backward."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _trace(model: nn.Module, network: AcceleratedNetwork) -> _Traced:
    try:
        graph = _graph(model)
    except Exception as problem:  # a model may fail in any way when its inputs have no values
        line = (str(problem).strip() or type(problem).__name__).splitlines()[0]
        return _Traced(model, None, f"torch.fx cannot trace the model ({line})")
    modules = dict(model.named_modules())
    found = [s for s in stretches(graph, modules) if len(s.program.branches()) >= FEWEST]
    found = [s for s in found if any(network.mask(b.conv.weight) is not None for b in s.program.branches())]
    if not found:
        return _Traced(model, None, "no sparse convolutions follow one another in the model")
    network.note_all("dense: it follows no other convolution, nor do others follow it")
    for stretch in found:
        _replace(graph, stretch, network.runner(stretch))
    return _Traced(model, fx.GraphModule(_holder(model), graph))


def _holder(model: nn.Module) -> nn.Module:
    """A module with the model's modules and tensors, of which a graph module takes its own."""
    holder = nn.Module()
    for name in ("_modules", "_parameters", "_buffers"):
        getattr(holder, name).update(getattr(model, name))
    return holder


def _graph(model: nn.Module) -> fx.Graph:
    """A model's graph. Raises when it cannot be traced, or its forward does more than a graph says."""
    forward = type(model).__mro__[1].forward
    kinds = [p.kind for p in list(inspect.signature(forward).parameters.values())[1:]]
    if kinds != [inspect.Parameter.POSITIONAL_OR_KEYWORD]:  # torch.fx would take None for a value
        raise ValueError("its forward takes more than one input")
    chance = torch.get_rng_state(), random.getstate()
    attributes = [(module, dict(module.__dict__)) for module in model.modules()]
    with _plain_class(model):
        try:
            graph = fx.Tracer().trace(model)
        finally:
            drawn = not torch.equal(chance[0], torch.get_rng_state()) or chance[1] != random.getstate()
            torch.set_rng_state(chance[0])
            random.setstate(chance[1])
            changed = [_put_back(module, before) for module, before in attributes]
    if drawn or any(changed):
        raise ValueError("its forward draws numbers or sets attributes")
    if any(node.op == "get_attr" for node in graph.nodes):  # which would go stale when it is replaced
        raise ValueError("its forward reads tensors by itself")
    return graph


@contextmanager
def _plain_class(model: nn.Module) -> Iterator[None]:
    """A context in which the model is of its own class."""
    accelerated = type(model)
    model.__class__ = accelerated.__mro__[1]
    try:
        yield
    finally:
        model.__class__ = accelerated


def _put_back(module: nn.Module, before: dict[str, Any]) -> bool:
    """Undo changes of a module's attributes. Returns whether there were any."""
    now = module.__dict__
    same = now.keys() == before.keys() and all(now[name] is value for name, value in before.items())
    if not same:
        now.clear()
        now.update(before)
    return not same


def _replace(graph: fx.Graph, stretch: Stretch, runner: _StretchRunner) -> None:
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


def _accelerated_class(plain: type[nn.Module]) -> type[nn.Module]:
    """A class whose objects run through their network; copies and pickles are of the plain class."""

    @functools.wraps(plain.forward)  # tracers read its signature
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if _is_transformed():
            return plain.forward(self, *args, **kwargs)
        network = self.__dict__.get(
            SAVED_AS
        )  # none in what a model makes of its own class, as nn.Sequential does of a slice
        result = NotImplemented if network is None else network.call(args, kwargs)
        return plain.forward(self, *args, **kwargs) if result is NotImplemented else result

    def reduce(self: nn.Module, protocol: Any) -> Any:
        whole = self.__getstate__() if hasattr(self, "__getstate__") else self.__dict__
        state = {name: value for name, value in whole.items() if name != SAVED_AS}
        # Not by copyreg.__newobj__, which pickle takes for the object's own class only.
        return copyreg._reconstructor, (plain, object, None), state  # type: ignore[attr-defined]

    names = {"__module__": plain.__module__, "__qualname__": plain.__qualname__, "__doc__": plain.__doc__}
    return type(plain.__name__, (plain,), {**names, "forward": forward, "__reduce_ex__": reduce})


def accelerate_network(
    model: nn.Module,
    masked: list[MaskedWeight],
    wants_dense: Callable[[], bool],
    is_active: Callable[[], bool] = lambda: True,
) -> AcceleratedNetwork:
    """Let the convolutions of a model compute sparse, on CPUs, with batch norms, ReLUs and additions between them.

    The model is traced by ``torch.fx`` when it is called; stretches of it run in a layout of their own, with one change of
    layout at either end. Parameters and buffers stay where they are, and are read at every call.

    Args:
        model: the network, whose forward takes one input.
        masked: its masked weights.
        wants_dense: returns whether the coming optimizer step needs the gradients of masked weights too.
        is_active: returns whether the masks are still kept.

    Returns: an object with ``does``, which says what each weight's convolution did last, and ``restore()``.
    """
    return AcceleratedNetwork(model, {w.weight: w for w in masked}, wants_dense, is_active)
