"""Checks that the whole gradient of a step was taken at the perturbed weights. Each problem is warned of once, with its cure.

Hooks on every module and parameter would cost a small net a few per cent of a step, so they are there in a few steps
only: the second of an optimizer in this process, the fourth, the eighth and so on. Loops rarely change their form. Hooks
on modules are also there in the first step after a load; those on modules that hold others stay where a step has several
forwards, between which parts of the model may be evaluated.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flatsparse.sam import hooks
from flatsparse.sam.addresses import address_holder
from flatsparse.sam.hooks import Perturbing
from flatsparse.sam.perturbation import Perturbation
from flatsparse.sam.warn_once import WarnOnce


def is_inspected(step: int) -> bool:
    """Return whether a step, counted from 1 in this process, is inspected: 2, 4, 8 …"""
    return step > 1 and step & (step - 1) == 0


class GradientChecks:
    """The checks of one optimizer, and what they know of the step it is in.

    Attributes:
        skipped: why a forward of a followed model was not perturbed.
    """

    def __init__(self, perturbation: Perturbation, warn: WarnOnce) -> None:
        self.perturbation, self._warn = perturbation, warn
        self.skipped = ""
        self._interrupted = ""  # what restored the weights between a forward and its backward
        self._watch: ArrivalWatch | None = None  # of gradients that come after that
        self._inspection: Inspection | None = None
        self._parts = PartHooks(eager_modules)  # for one step
        self._lasting_parts = PartHooks(_lasting_modules)
        self._called: set[int] = set()  # the modules whose training forwards came since the last step, by id
        self._accumulates = False  # whether a step has had several forwards of one module
        self._steps = 0  # taken since this object was made

    @property
    def steps(self) -> int:
        """The number of steps whose perturbed weights were made since this object was."""
        return self._steps

    def __getstate__(self) -> dict[str, Any]:
        fresh: dict[str, Any] = {"_watch": None, "_inspection": None, "_called": set(), "_steps": 0}
        return {**self.__dict__, **fresh}

    def restore(self, cause: str) -> None:
        """Restore perturbed weights. A gradient of a forward before that belongs to no point: it is warned of."""
        perturbed = self.perturbation.swapped
        self.perturbation.restore()
        if perturbed and self.perturbation.was_applied:
            self._interrupted = (
                f"{cause} came between a forward at w + e and its backward, whose gradient then belongs to no point: take"
                " the backward first, or evaluate under torch.no_grad(); call model.train() if that forward was to train"
            )
            self._watch = self._watch or ArrivalWatch(perturbed, self)

    def begin_step(self, optimizer: Perturbing) -> None:
        """Watch the coming step, if it is one of those that are watched and its forward is to be perturbed."""
        self._steps += 1
        if is_inspected(self._steps + 1) and self.perturbation.weights.exist:
            self._inspection = Inspection(optimizer, self)
            self._parts.attach(optimizer)

    def begin_loaded(self, optimizer: Perturbing) -> None:
        """Watch the modules of the coming step: its forward may be of a part alone, which no step has shown yet."""
        if self.perturbation.weights.exist:
            self._parts.attach(optimizer)

    def note_forward(self, module: nn.Module, optimizer: Perturbing) -> None:
        """Take note of a training forward: with several in a step, weights stay perturbed where others may evaluate."""
        if id(module) in self._called and not self._accumulates:
            self._accumulates = True
            self._lasting_parts.attach(optimizer)
        self._called.add(id(module))

    def end_step(self) -> None:
        """Stop watching: whatever came between, this step's gradients are there."""
        if self._watch is not None:
            self._watch.remove()
        self._watch, self._interrupted = None, ""
        if self._inspection is not None:
            self._inspection.end(self)
        self._inspection = None
        self._parts.remove()
        self._called.clear()
        self.perturbation.was_applied = False

    def forget_parts(self) -> None:
        """Take the hooks off all modules, until a step shows anew that it has several forwards."""
        self._parts.remove()
        self._lasting_parts.remove()
        self._accumulates = False

    def warn_of_arrival(self) -> None:
        """Warn of a gradient that was not taken at w + e."""
        partly = (
            "a part of a step's gradient was taken while the parameters held w, not w + e: run every forward and backward"
            " of the step inside optimizer.perturbed(), or through calls of the followed model"
        )
        self._warn("arrival", self._interrupted or partly)


class ArrivalWatch:
    """Hooks on parameters that warn when a gradient arrives after the weights of its forward were restored."""

    def __init__(self, parameters: Iterable[nn.Parameter], checks: GradientChecks) -> None:
        self._checks = weakref.ref(checks)
        self.early = False  # whether a gradient came before any weights were perturbed
        handles = [p.register_post_accumulate_grad_hook(self._arrived) for p in parameters if p.requires_grad]
        self.remove = weakref.finalize(checks, _remove, handles)  # at the latest with the optimizer

    def _arrived(self, p: Tensor) -> None:
        checks = self._checks()
        if checks is None or checks.perturbation.is_applied:
            return
        if checks.perturbation.was_applied:
            checks.warn_of_arrival()
        else:
            self.early = True


class PartHooks:
    """Hooks on the modules of followed models.

    A part may be called by itself (``self.net(x)`` in a LightningModule). Once its forward is seen to train at w or to
    evaluate at w + e, it is followed too.

    Args:
        chosen: gives the modules of a followed model that get hooks.
    """

    def __init__(self, chosen: Callable[[nn.Module], Iterable[nn.Module]]) -> None:
        self._chosen = chosen
        self._handles: list[Any] = []
        weakref.finalize(self, _remove, self._handles)  # the model may outlive the optimizer
        self._models: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def __reduce__(self) -> tuple[Any, ...]:
        return PartHooks, (self._chosen,)  # copies follow nobody

    def attach(self, optimizer: Perturbing) -> None:
        """Attach to the models that have none of these hooks."""
        for model in [model for model in optimizer.followed if model not in self._models]:
            self._models.add(model)
            for module in self._chosen(model):
                hook = _ModuleHook(model, module, optimizer)
                self._handles.append(module.register_forward_pre_hook(hook, prepend=True))

    def remove(self) -> None:
        """Take all away."""
        _remove(self._handles)
        self._models.clear()


class Inspection:
    """The watch over one step: a gradient that was not taken at perturbed weights is warned of."""

    def __init__(self, optimizer: Perturbing, checks: GradientChecks) -> None:
        models, perturbed = list(optimizer.followed), list(checks.perturbation.weights.kept())
        self._arrivals = ArrivalWatch(perturbed, checks)
        _warn_of_strangers(optimizer, models, perturbed)
        if not checks.perturbation.options.in_place:
            _warn_of_addresses(optimizer, models, perturbed)

    def end(self, checks: GradientChecks) -> None:
        """Take the hooks away, and warn of a step that was perturbed in part."""
        if self._arrivals.early and checks.perturbation.was_applied:
            checks.warn_of_arrival()
        self._arrivals.remove()


class _ModuleHook:
    """A module's hook that is dead in copies."""

    def __init__(self, model: nn.Module | None, module: nn.Module | None, optimizer: Perturbing | None) -> None:
        self._model, self._module, self._optimizer = map(_reference, (model, module, optimizer))

    def __reduce__(self) -> tuple[Any, ...]:
        return _ModuleHook, (None, None, None)

    def __call__(self, module: nn.Module, args: Any) -> None:
        if torch.compiler.is_compiling() or module.training != torch.is_grad_enabled():
            return
        model, optimizer = self._model(), self._optimizer()
        if module is not self._module() or model is None or optimizer is None:
            return
        if module.training != optimizer.is_perturbed:  # it trains at w, or evaluates at w + e
            hooks.enter(model, module, args, optimizer)


def acts_on_parts_alone(hook: Any) -> bool:
    """Return whether a hook on a module is for calls of that module by itself: the model's own hook comes before it."""
    return isinstance(hook, _ModuleHook)


def _remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()


def _reference(thing: Any) -> Callable[[], Any]:
    return (lambda: None) if thing is None else weakref.ref(thing)


def eager_modules(model: nn.Module) -> Iterator[nn.Module]:
    """The modules of a model, except those whose hooks a compiler has traced: new hooks would make it recompile."""
    modules = list(model.modules())
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    wrapped = any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in modules)
    if wrapped or (dynamo and any(dynamo._debug_get_cache_entry_list(code) for code in _codes(modules))):
        return
    yield from modules


def _lasting_modules(model: nn.Module) -> Iterator[nn.Module]:
    """The parts whose hooks cost little from step to step: those that hold others, and a model's own attributes."""
    own = set() if isinstance(model, nn.Sequential) else set(model.children())
    for part in eager_modules(model):
        if part is not model and (part in own or any(True for _ in part.children())):
            yield part


def _codes(modules: Iterable[nn.Module]) -> set[Any]:
    codes = (getattr(type(module).forward, "__code__", None) for module in modules)
    return {code for code in codes if code is not None}


def _warn_of_strangers(optimizer: Perturbing, models: Sequence[nn.Module], perturbed: Sequence[nn.Parameter]) -> None:
    """Parameters of no followed model are perturbed only from the moment at which a followed one is called."""
    if not models:
        return
    known = {p for model in models for p in model.parameters()}
    strangers = [p for p in perturbed if p not in known]
    if strangers:
        optimizer.warn(
            "strangers",
            f"{len(strangers)} of the {len(perturbed)} parameters that the optimizer perturbs (one of shape"
            f" {tuple(strangers[0].shape)}) are in no model that it follows, so a forward may meet them half at w and half at"
            " w + e: call optimizer.follow() with the model that holds them all",
        )


def _warn_of_addresses(optimizer: Perturbing, models: Sequence[nn.Module], perturbed: Sequence[nn.Parameter]) -> None:
    for model in models:
        if (holder := address_holder(model, perturbed)) is not None:
            optimizer.warn(
                "addresses",
                f"{holder} keeps the address of a parameter's storage, which is exchanged when weights are perturbed, so it"
                f" sees no perturbation: give {type(optimizer).__name__} in_place=True",
            )
