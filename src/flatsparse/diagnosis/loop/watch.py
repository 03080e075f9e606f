"""The watch over training loops: it tells their checks what happens, and takes no part in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from flatsparse.diagnosis.doctor import examined
from flatsparse.diagnosis.finding import Finding, from_message, users_line
from flatsparse.diagnosis.loop import patches
from flatsparse.diagnosis.loop.watched import Watched
from flatsparse.diagnosis.subject import Subject
from flatsparse.sparse.training import SparseTraining


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
        self._inside = False  # the step of an outermost optimizer
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

    def examine(self) -> None:
        """Look at the objects as they are now."""
        for watched in self.watched:
            with torch._C.DisableTorchFunction():
                findings = list(examined(watched.subject))
            for found in findings:
                self.report(replace(found, where=found.where or watched.subject.made_at))

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Mapping[str, Any]) -> None:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if self._is_outermost(optimizer):
            self._inside = True
            if not self.steps:
                self.examine()
        self.tell("before_step", optimizer, closure is not None)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.tell("after_step", optimizer)
        self.all_steps += bool(self.watched)
        own = self._is_outermost(optimizer)
        self.steps += own
        self._inside &= not own
        if self.watched and not self._inside and is_examined(self.steps or self.all_steps):
            self.examine()
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
            stack.enter_context(patches.averages_watched(lambda average: self.tell("averaged", average)))
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
