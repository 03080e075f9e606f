"""Networks whose convolutions compute sparse, with what lies between them, in one layout."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flatsparse.acceleration import products
from flatsparse.acceleration.modules import is_transformed, reduced
from flatsparse.acceleration.network_check import computes_the_same
from flatsparse.acceleration.network_function import Runner
from flatsparse.acceleration.network_graph import Traced, has_hooks, plain_class, settings, trace
from flatsparse.acceleration.network_program import Program
from flatsparse.acceleration.network_stretch import StretchRunner
from flatsparse.acceleration.network_trace import Stretch
from flatsparse.sparse.masks import MaskedWeight

OFTEN = 16  # traces after which only one call in a few dozen is traced: a trace costs about as much as a call
SAVED_AS = "_flatsparse_network"  # the module's attribute that is left out of copies and pickles


class AcceleratedNetwork:
    """A model whose convolutions compute sparse, in stretches. See ``accelerate_network``.

    Attributes:
        does: for each masked weight of a convolution, "sparse", or "dense: " and why; as of the last call.
    """

    def __init__(
        self,
        model: nn.Module,
        masked: dict[Tensor, MaskedWeight],
        wants_dense: Callable[[], bool],
        is_active: Callable[[], bool],
    ) -> None:
        self.does = {w.name: "dense: it was not called yet" for w in masked.values() if w.mask.ndim == 4}
        self._masked, self._wants_dense, self.is_active = masked, wants_dense, is_active
        self._model = weakref.ref(model)
        self._class = type(model)
        self._graphs: dict[tuple[Any, ...], Traced] = {}  # by the modules' settings
        self._calls, self._traces = 0, 0
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
        self._calls += 1
        traced = self._traced(model, args, kwargs)
        if traced is None:
            self.note_all("dense: attributes of its modules change too often to trace it every time")
            return NotImplemented
        if traced.module is None:
            self.note_all(f"dense: {traced.reason}")
            return NotImplemented
        return traced.module(*args, **kwargs)

    def _traced(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Traced | None:
        """The trace for the model's settings; None when there were too many traces for the calls so far."""
        key = settings(model)
        traced = self._graphs.get(key)
        if traced is not None and traced.is_current():
            return traced
        if self._traces >= OFTEN and self._traces * 4 * OFTEN > self._calls:
            return None
        if len(self._graphs) >= OFTEN:
            self._graphs.clear()
        self._traces += 1
        traced = self._trace(model)
        with plain_class(model):
            if traced.module is not None and not computes_the_same(model, traced.module, args, kwargs):
                traced = Traced(model, None, "torch.fx cannot trace the model (what it traces computes something else)")
        self._graphs[key] = traced
        return traced

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
        if any(has_hooks(module) for module in model.modules() if module is not model):
            return "a hook on one of its modules needs it to be called"
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

    def mask(self, weight: Tensor) -> Tensor | None:
        masked = self._masked.get(weight)
        return None if masked is None else masked.mask

    def count(self, weight: Tensor) -> tuple[int, int]:
        """Return the number of live entries of a weight, and that of all."""
        masked = self._masked.get(weight)
        return (weight.numel(),) * 2 if masked is None else (masked.active, masked.size)

    def _trace(self, model: nn.Module) -> Traced:
        self.note_all("dense: it follows no other convolution, nor do others follow it")
        return trace(model, lambda weight: weight in self._masked, self._runner)

    def _runner(self, stretch: Stretch) -> StretchRunner:
        return StretchRunner(self, Runner(stretch.program, self.mask, self._wants_dense))


def _accelerated_class(plain: type[nn.Module]) -> type[nn.Module]:
    """A class whose objects run through their network; copies and pickles are of the plain class."""

    @functools.wraps(plain.forward)  # tracers read its signature
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if is_transformed():
            return plain.forward(self, *args, **kwargs)
        # None in what a model makes of its own class, as nn.Sequential does of a slice; another's in nn.DataParallel's copies.
        network = self.__dict__.get(SAVED_AS)
        if network is None or network._model() is not self:
            return plain.forward(self, *args, **kwargs)
        result = network.call(args, kwargs)
        return plain.forward(self, *args, **kwargs) if result is NotImplemented else result

    def reduce(self: nn.Module, protocol: Any) -> Any:
        return reduced(self, plain, SAVED_AS)

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
    layout at either end. Parameters and buffers stay where they are, and are read at every call. A trace is made again after
    an attribute or mode of a module has changed, and its first output is compared with the model's own: a model that does what
    a trace does not hold stays dense. A backward with ``create_graph=True`` raises a RuntimeError.

    Args:
        model: the network, whose forward takes one input.
        masked: its masked weights.
        wants_dense: returns whether the coming optimizer step needs the gradients of masked weights too.
        is_active: returns whether the masks are still kept.

    Returns: an object with ``does``, which says what each weight's convolution did last, and ``restore()``.
    """
    return AcceleratedNetwork(model, {w.weight: w for w in masked}, wants_dense, is_active)
