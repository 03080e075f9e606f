"""What happens in a training loop while it is watched, and the base class of the checks that look at it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from flatsparse.diagnosis.finding import Finding, users_line
from flatsparse.diagnosis.subject import Subject

Report = Callable[[Finding], None]


@dataclass(frozen=True)
class Call:
    """A call of the model, or of a part of it.

    Attributes:
        module: that is called.
        inputs: its tensors.
        trains: whether it is in training mode, with gradients on.
        records: whether gradients are on.
        recomputed: whether a backward pass runs it again.
    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    trains: bool
    records: bool
    recomputed: bool


class EventCheck:
    """A check of what happens; a subclass has a method for each kind of event that it looks at, and state between them.

    Args:
        subject: the loop's objects.
        report: takes a finding.
    """

    def __init__(self, subject: Subject, report: Report) -> None:
        self.subject, self._report = subject, report

    def report(self, name: str, what: str, cure: str, where: str | None = None) -> None:
        """Report a finding, at the line of the user's code that is running, or at another."""
        self._report(Finding(name, what, cure, users_line() if where is None else where))

    def is_own(self, optimizer: Optimizer) -> bool:
        """Return whether an optimizer is the subject's outermost."""
        return optimizer is self.subject.optimizer

    def before_call(self, call: Call) -> None:
        """Before the model is called."""

    def after_call(self, call: Call, output: Any) -> None:
        """After that."""

    def before_part(self, call: Call) -> None:
        """Before a part of the model is called by itself."""

    def gradient(self, p: nn.Parameter, incoming: Tensor) -> None:
        """After a gradient was added to what a parameter had."""

    def before_step(self, optimizer: Optimizer, closure: bool) -> None:
        """Before any optimizer's step."""

    def after_step(self, optimizer: Optimizer) -> None:
        """After that."""

    def operation(self, name: str, args: tuple[Any, ...]) -> None:
        """Before one of torch's operations that ``operations.WATCHED`` names, outside of this package."""

    def saved(self, thing: Any, file: Any) -> None:
        """Before ``torch.save`` of a thing to a file."""

    def averaged(self, average: Any) -> None:
        """After an ``AveragedModel`` has taken in weights."""

    def scheduled(self, scheduler: Any) -> None:
        """After a scheduler's step."""

    def scaled(self, what: str, optimizer: Optimizer | None) -> None:
        """Before a gradient scaler's ``scale``, ``unscale_`` or ``step``."""

    def ended(self) -> None:
        """When a script has come to its own end."""


def tensors_in(thing: Any) -> list[Tensor]:
    """The tensors in nested containers, and in the attributes of objects such as models' outputs."""
    if isinstance(thing, Tensor):
        return [thing]
    if isinstance(thing, dict):
        return [t for value in thing.values() for t in tensors_in(value)]
    if isinstance(thing, (list, tuple)):
        return [t for value in thing for t in tensors_in(value)]
    fields = getattr(thing, "__dataclass_fields__", None)
    return [t for name in fields for t in tensors_in(getattr(thing, name, None))] if fields else []
