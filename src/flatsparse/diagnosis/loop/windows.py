"""Checks of what reads, writes or saves weights while they hold w + e."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.optim import Optimizer

from flatsparse.diagnosis.finding import users_line
from flatsparse.diagnosis.loop.events import Call, EventCheck, tensors_in
from flatsparse.diagnosis.subject import address
from flatsparse.sam.state_entry import PERTURBED

COPIES = (
    *("clone", "copy_", "lerp", "lerp_", "add", "add_", "sub", "sub_", "mul", "cat", "numpy", "cpu", "tolist"),
    *("_foreach_copy_", "_foreach_lerp_", "_foreach_add", "_foreach_add_", "_foreach_mul", "_foreach_sub"),
)
WRITES = (
    *("copy_", "lerp_", "add_", "sub_", "mul_", "div_", "clamp_", "clip_", "zero_", "fill_", "normal_", "masked_fill_"),
    *(
        "_foreach_copy_",
        "_foreach_add_",
        "_foreach_mul_",
        "_foreach_lerp_",
        "_foreach_clamp_min_",
        "renorm_",
        "uniform_",
    ),
)
RIGHT = "do so after optimizer.step(), or read model.state_dict(), which gives w at any moment"


class ReadInWindow(EventCheck):
    """Weights that are copied, averaged or written while they hold w + e."""

    def operation(self, name: str, args: tuple[Any, ...]) -> None:
        if name not in COPIES and name not in WRITES:
            return
        perturbed = self.subject.perturbed
        if not perturbed:
            return
        written = tensors_in(args[:1]) if name in WRITES else []
        if any(_reads(t) and address(t) in perturbed for t in written):
            self.report(
                "written-in-window",
                "weights are written to between a forward at w + e and the step, which puts w back and loses what was written",
                "write weights after optimizer.step()",
            )
        elif name in COPIES and any(_reads(t) and address(t) in perturbed for t in tensors_in(args)):
            self.report(
                "copied-in-window",
                "weights are copied or averaged between a forward and the step, while they hold w + e and not w",
                RIGHT,
            )


def _reads(tensor: Tensor) -> bool:
    """Return whether an operation on a tensor is no part of a loss."""
    return not (tensor.requires_grad and torch.is_grad_enabled())


class PartInWindow(EventCheck):
    """A part of the model that is evaluated while it holds w + e: only calls of the whole model see w then."""

    def before_part(self, call: Call) -> None:
        if call.trains or call.recomputed or not self.subject.perturbed:
            return
        shown = set(self.subject.perturbed)
        if any(address(p) in shown for p in call.module.parameters()):
            self.report(
                "evaluated-in-window",
                f"a part of the model ({type(call.module).__name__}) is evaluated between a forward and the step, at w + e",
                "evaluate after optimizer.step(), or call the whole model under torch.no_grad()",
            )


class SavedInWindow(EventCheck):
    """Weights that are saved while they hold w + e."""

    def saved(self, thing: Any, file: Any) -> None:
        shown = set(self.subject.perturbed)
        if shown and any(address(t) in shown for t in _saved_tensors(thing)):
            self.report(
                "saved-in-window",
                "weights are saved between a forward and the step, while they hold w + e and not w",
                "save the state_dict() of the whole model, or save after optimizer.step()",
            )


def _saved_tensors(thing: Any) -> list[Tensor]:
    if isinstance(thing, nn.Module):
        return list(thing.parameters())
    if isinstance(thing, dict):
        return [t for key, value in thing.items() if key != PERTURBED for t in _saved_tensors(value)]
    if isinstance(thing, (list, tuple)):
        return [t for value in thing for t in _saved_tensors(value)]
    return [thing] if isinstance(thing, Tensor) else []


class Undifferentiated(EventCheck):
    """Training forwards at w + e whose output is never differentiated: evaluations that forgot ``eval()`` and ``no_grad()``."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._outputs: list[list[bool]] = []  # of this step's forwards: whether a gradient came to them
        self._lines: list[str] = []
        self._full = False  # whether there was a step all of whose forwards were differentiated

    def after_call(self, call: Call, output: Any) -> None:
        tensors = [t for t in tensors_in(output) if t.requires_grad and not is_functorch_wrapped_tensor(t)]
        if not call.trains or call.recomputed or self.subject.s2sam is None or not tensors:
            return
        arrived = [False]
        for t in tensors:
            t.register_hook(lambda _, arrived=arrived: arrived.__setitem__(0, True))  # type: ignore[misc]
        self._outputs.append(arrived)
        self._lines.append(users_line())

    def after_step(self, optimizer: Optimizer) -> None:
        if not self.is_own(optimizer):
            return
        missed = [line for arrived, line in zip(self._outputs, self._lines, strict=True) if not arrived[0]]
        if missed and self._full:
            self.report(
                "evaluated-in-window",
                f"{len(missed)} forwards in training mode with gradients on, and so at w + e, were never differentiated: they"
                " look like an evaluation",
                "evaluate under model.eval() and torch.no_grad()",
                missed[0],
            )
        self._full |= bool(self._outputs) and not missed
        self._outputs, self._lines = [], []
