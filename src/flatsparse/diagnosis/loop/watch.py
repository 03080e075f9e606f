"""The watch over a training loop: hooks that tell the checks what happens, and take no part in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from flatsparse.diagnosis.doctor import examined
from flatsparse.diagnosis.finding import Finding, from_message, users_line
from flatsparse.diagnosis.loop import gradients, passes, patches, saving, steps, windows
from flatsparse.diagnosis.loop.events import Call, EventCheck, Report, tensors_in
from flatsparse.diagnosis.subject import Subject
from flatsparse.sam.gradient_checks import eager_modules
from flatsparse.sparse.training import SparseTraining

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
        self.steps = 0
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


class Watch:
    """All that is watched, and what was found so far.

    Attributes:
        findings: each kind of mistake once.
        steps: the number of steps of the subjects' optimizers so far.
        all_steps: of all optimizers, since there are subjects.
        after_step: called after each.
    """

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.steps = self.all_steps = 0
        self.watched: list[Watched] = []
        self.after_step: Callable[[], None] = lambda: None

    def add(self, subject: Subject) -> None:
        """Watch a subject; one of the same optimizer becomes part of the one that is watched."""
        for watched in self.watched:
            known = watched.subject
            if known.base is subject.base:
                if known.optimizer in subject.optimizers:
                    known.optimizer = subject.optimizer
                known.model, known.training = subject.model or known.model, subject.training or known.training
                known.made_at = subject.made_at or known.made_at
                watched.watch_calls()
                return
        self.watched.append(Watched(subject, self.report))

    def report(self, finding: Finding) -> None:
        """Take a finding, if none of its kind is there."""
        if all(finding.name != other.name for other in self.findings):
            self.findings.append(finding)

    def tell(self, event: str, *args: Any) -> None:
        """Tell the checks of all subjects of an event."""
        for watched in self.watched:
            watched.tell(event, *args)

    def examine(self, *, at_rest: bool = True) -> None:
        """Look at the objects as they are now; see ``doctor.examined``."""
        for watched in self.watched:
            with torch._C.DisableTorchFunction():
                findings = list(examined(watched.subject, at_rest=at_rest))
            for found in findings:
                self.report(replace(found, where=found.where or watched.subject.made_at))

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Mapping[str, Any]) -> None:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if self._is_outermost(optimizer) and is_examined(self.steps):
            self.examine()  # all that belongs to the step before is done
        self.tell("before_step", optimizer, closure is not None)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.tell("after_step", optimizer)
        self.all_steps += bool(self.watched)
        own = self._is_outermost(optimizer)
        self.steps += own
        if self.watched and (own or not self.steps) and is_examined(self.steps or self.all_steps):
            self.examine(at_rest=False)
        self.after_step()

    def _is_outermost(self, optimizer: Optimizer) -> bool:
        return any(optimizer is watched.subject.optimizer for watched in self.watched)

    def _warned(self, message: str) -> None:
        # What an optimizer warns of is in its own list, under its topic: see ``objects.optimizers.warned``.
        given = [w.subject.sharpness.warn.given for w in self.watched if w.subject.sharpness is not None]
        for topic, text in ((t, m) for topics in given for t, m in topics.items()):
            if text in message:
                self.report(from_message(topic, text, users_line()))
                return
        self.report(from_message(_slug(message), message, users_line()))

    @contextmanager
    def running(self) -> Iterator[None]:
        """A context in which the subjects are watched."""
        with ExitStack() as stack:
            stack.callback(self._remove)
            stack.callback(register_optimizer_step_pre_hook(self._before_step).remove)
            stack.callback(register_optimizer_step_post_hook(self._after_step).remove)
            stack.enter_context(patches.saves_watched(lambda thing, file: self.tell("saved", thing, file)))
            stack.enter_context(patches.schedulers_watched(lambda scheduler: self.tell("scheduled", scheduler)))
            stack.enter_context(patches.scalers_watched(lambda what, optimizer: self.tell("scaled", what, optimizer)))
            stack.enter_context(patches.warnings_watched(self._warned))
            stack.enter_context(patches.Operations(lambda name, args: self.tell("operation", name, args)))
            yield

    def _remove(self) -> None:
        for watched in self.watched:
            watched.remove()


def is_examined(step: int) -> bool:
    """Return whether the objects are looked at after a step, counted from 1: 1 to 4, then 8, 16 and so on, and each tenth."""
    return step <= 4 or step & (step - 1) == 0 or step % 10 == 0


def _slug(message: str) -> str:
    words = "".join(c if c.isalpha() else " " for c in message.lower()).split()
    return "warning-" + "-".join(words[:4])


@contextmanager
def watching(model: nn.Module, optimizer: Optimizer, training: SparseTraining | None = None) -> Iterator[list[Finding]]:
    """A context that looks at a training loop while it runs, and yields a list that fills with what is wrong with it.

    Ours, because a loop's mistakes are in the order of its calls. A few steps are enough, with an evaluation and a
    checkpoint among them. What the loop computes stays the same to the last bit; it is slower meanwhile.

    Args:
        model, optimizer, training: as for ``doctor``, which is asked too.

    Raises: InputError for objects of other kinds.

    >>> import flatsparse as fs, torch
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = fs.S2SAM(torch.optim.SGD(model.parameters(), lr=0.1)).follow(model)
    >>> with fs.watching(model, optimizer) as findings:
    ...     for _ in range(3):
    ...         model(torch.ones(4, 2)).mean().backward()
    ...         optimizer.step()  # and no zero_grad
    >>> [finding.name for finding in findings]
    ['gradient-carried-over']
    """
    watch = Watch()
    watch.add(Subject.of(model, optimizer, training))
    with watch.running():
        yield watch.findings
    watch.examine()
