"""One loop's objects under watch: its checks, and the hooks that tell them of calls and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flatsparse.diagnosis.loop import gradients, passes, saving, steps, windows
from flatsparse.diagnosis.loop.events import Call, EventCheck, Report, tensors_in
from flatsparse.diagnosis.subject import Subject
from flatsparse.sam.gradient_checks import eager_modules

# A new check of what happens is a class, here.
CHECKS: tuple[Callable[[Subject, Report], EventCheck], ...] = (
    steps.BaseStepped,
    steps.AnotherOptimizer,
    steps.SchedulerElsewhere,
    steps.NoGradient,
    steps.TrainedInEvalMode,
    steps.ScheduleUnfinished,
    gradients.CarriedOver,
    gradients.GradientLost,
    gradients.ClippedWithPruned,
    gradients.Scaling,
    windows.ReadInWindow,
    windows.PartInWindow,
    windows.SavedInWindow,
    windows.Undifferentiated,
    passes.RevivedAtForward,
    passes.StatisticsTwice,
    passes.BuffersTwice,
    saving.MasksNotSaved,
    saving.MasksOutOfStep,
    saving.AverageOutsideMasks,
)
FEW = 8  # parameters whose gradients are watched: zero_grad clears all or none


class Watched:
    """One subject with its checks, and the hooks that tell them of calls and gradients."""

    def __init__(self, subject: Subject, report: Report) -> None:
        self.subject = subject
        self.checks = [kind(subject, report) for kind in CHECKS]
        self._handles: list[Any] = []
        self._hooked: nn.Module | None = None
        self._depth = 0  # of calls of the model
        self._incoming: dict[int, Tensor] = {}
        self._watch_gradients()
        self.watch_calls()

    def tell(self, event: str, *args: Any) -> None:
        """Tell all checks of an event."""
        if event == "operation" and (self._depth or _is_backward()):  # those of layers are no reads of a loop
            return
        with torch._C.DisableTorchFunction():
            for check in self.checks:
                getattr(check, event)(*args)

    def _watch_gradients(self) -> None:
        """Hook the smallest parameters, one of which at least a loss will reach."""
        leaves = {
            id(p): p for p in self.subject.parameters if p.requires_grad and p.is_leaf and type(p) is nn.Parameter
        }
        for p in sorted(leaves.values(), key=lambda p: p.numel())[:FEW]:
            self._handles.append(p.register_hook(lambda g, p=p: self._incoming.__setitem__(id(p), g.detach().clone())))  # type: ignore[misc]
            self._handles.append(p.register_post_accumulate_grad_hook(self._arrived))

    def _arrived(self, p: Any) -> None:
        incoming = self._incoming.pop(id(p), None)
        if incoming is not None:
            self.tell("gradient", p, incoming)

    def watch_calls(self) -> None:
        """Hook the model, once it is known."""
        model = self.subject.model
        if model is None or model is self._hooked:
            return
        self._hooked = model
        before, after, before_part = (ModuleHook(f) for f in (self._before, self._after, self._before_part))
        self._handles.append(model.register_forward_pre_hook(before, with_kwargs=True))
        self._handles.append(model.register_forward_hook(after, with_kwargs=True, always_call=True))
        for module in eager_modules(model):
            if module is not model:
                self._handles.append(module.register_forward_pre_hook(before_part, with_kwargs=True))

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._depth += 1
        if self._depth == 1:
            self.tell("before_call", _call(module, args, kwargs))

    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._depth = max(0, self._depth - 1)
        if self._depth == 0 and output is not None:
            self.tell("after_call", _call(module, args, kwargs), output)

    def _before_part(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._depth == 0:
            self.tell("before_part", _call(module, args, kwargs))

    def remove(self) -> None:
        """Take all hooks away."""
        for handle in self._handles:
            handle.remove()


class ModuleHook:
    """A hook of a module that leaves nothing in compiled graphs and is dead in copies of the module."""

    def __init__(self, function: Callable[..., None] | None) -> None:
        self._function = function

    def __reduce__(self) -> tuple[Any, ...]:
        return ModuleHook, (None,)

    def __call__(self, *args: Any) -> None:
        if not torch.compiler.is_compiling():
            self._told(*args)

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def _told(self, *args: Any) -> None:
        if self._function is not None:
            self._function(*args)


def _call(module: nn.Module, args: Any, kwargs: Any) -> Call:
    records = torch.is_grad_enabled()
    return Call(module, tuple(tensors_in([args, kwargs])), module.training and records, records, _is_backward())


def _is_backward() -> bool:
    return torch._C._current_graph_task_id() != -1  # type: ignore[attr-defined]
