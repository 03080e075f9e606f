"""Checks of gradients: left from the step before, clipped by the norm of pruned weights too, scaled or unscaled twice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatsparse.common.distributed import PLAIN
from flatsparse.diagnosis.finding import called_by_user, users_line
from flatsparse.diagnosis.loop.events import EventCheck, tensors_in
from flatsparse.sam.optimizers import SAM
from flatsparse.sparse.masked_weight import MaskedWeight

NORMS = ("_foreach_norm", "norm", "vector_norm", "linalg_vector_norm", "linalg_norm")
SCALINGS = ("_foreach_mul_", "_foreach_div_", "mul_", "div_")
NOTABLE = 0.9  # a norm of the active weights' gradient below this share of the whole one's changes what clipping does


class CarriedOver(EventCheck):
    """Gradients that are added to those of the step before."""

    _first = False  # whether the gradients to come are the first after a step
    _line = ""  # of that step

    def after_step(self, optimizer: Optimizer) -> None:
        if self.is_own(optimizer):
            self._first, self._line = True, users_line()

    def gradient(self, p: nn.Parameter, incoming: Tensor) -> None:
        if not self._first or p.grad is None or type(p.grad) not in PLAIN:
            return
        self._first = False
        finite = bool(torch.isfinite(p.grad).all() and torch.isfinite(incoming).all())
        if finite and p.grad.shape == incoming.shape and not torch.equal(p.grad, incoming.to(p.grad.dtype)):
            self.report(
                "gradient-carried-over",
                "the gradient of a step is added to that of the step before, because nothing clears it",
                "call optimizer.zero_grad() after each optimizer.step()",
                self._line,
            )


class GradientLost(EventCheck):
    """Gradients of a step that are cleared before it: accumulation that clears them for each part of a batch."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._arrived: set[int] = set()
        self._lost, self._times, self._alone = False, 0, True

    def gradient(self, p: nn.Parameter, incoming: Tensor) -> None:
        if id(p) in self._arrived and p.grad is not None and p.grad.shape == incoming.shape:
            self._lost |= bool(incoming.ne(0).any()) and torch.equal(p.grad, incoming.to(p.grad.dtype))
        self._arrived.add(id(p))

    def before_step(self, optimizer: Optimizer, closure: bool) -> None:
        if closure or all(optimizer is not o for o in self.subject.optimizers):
            self._alone = False  # closures clear, and so do losses of two optimizers through one model
        if not self.is_own(optimizer):
            return
        self._times = self._times + 1 if self._lost and not isinstance(self.subject.sharpness, SAM) else 0
        self._arrived, self._lost = set(), False
        if self._times == 3 and self._alone:
            self.report(
                "gradient-lost",
                "gradients are cleared between the backward passes of one step, so that only the last one counts",
                "call optimizer.zero_grad() once a step, after optimizer.step()",
            )


class ClippedWithPruned(EventCheck):
    """Clipping by a norm that has the gradients of pruned weights in it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._norms: tuple[float, float] | None = None

    def operation(self, name: str, args: tuple[Any, ...]) -> None:
        if name in NORMS:
            given = {t.data_ptr() for t in tensors_in(args) if t.layout == torch.strided}
            masked = [w for w in self.subject.masked if w.weight.grad is not None and w.weight.grad.data_ptr() in given]
            if masked and any(_is_dense(w) for w in masked):
                self._norms = self._norms_now()
        elif name in SCALINGS and self._norms is not None and _scales(args) and called_by_user():
            held = {p.grad.data_ptr() for p in self.subject.parameters if p.grad is not None}
            whole, active = self._norms
            if active < NOTABLE * whole and any(t.data_ptr() in held for t in tensors_in(args[:1])):
                self.report(
                    "clipped-with-pruned",
                    f"gradients are clipped by a norm of {whole:.3g} that has those of pruned weights in it, which are then"
                    f" zeroed; that of the active weights is {active:.3g}",
                    "call training.mask_gradients() before clipping (after scaler.unscale_), or raise the limit",
                )

    def after_step(self, optimizer: Optimizer) -> None:
        self._norms = None

    def _norms_now(self) -> tuple[float, float]:
        """The norms of all gradients, and of those that masks leave."""
        masks = {id(w.weight): w.mask for w in self.subject.masked}
        gradients = [(p.grad.detach(), masks.get(id(p))) for p in self.subject.parameters if p.grad is not None]
        left = [g if mask is None else g * mask.to(g.device) for g, mask in gradients]
        return _norm([g for g, _ in gradients]), _norm(left)


def _norm(tensors: list[Tensor]) -> float:
    return sum(float(t.double().square().sum()) for t in tensors) ** 0.5


def _is_dense(w: MaskedWeight) -> bool:
    return w.weight.grad is not None and bool((w.weight.grad.ne(0) & ~w.mask.to(w.weight.grad.device)).any())


def _scales(args: tuple[Any, ...]) -> bool:
    """Return whether an operation scales by another number than 1."""
    factor = args[1] if len(args) > 1 else 1
    factors = factor if isinstance(factor, (list, tuple)) else [factor]
    return any(float(f) != 1 for f in factors if not isinstance(f, Tensor) or f.numel() == 1)


class Scaling(EventCheck):
    """A gradient scaler that is passed by, or that unscales twice."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._scaled, self._unscaled = False, set[int]()

    def scaled(self, what: str, optimizer: Optimizer | None) -> None:
        if what == "scale":
            self._scaled = True
        elif optimizer is not None and any(optimizer is o for o in self.subject.optimizers):
            others = self._unscaled - {id(optimizer)}
            if what == "unscale_" and others:
                self.report(
                    "unscaled-twice",
                    "the scaler unscales the gradients twice, once for the base and once for its wrapper, which it takes for"
                    " two optimizers",
                    "give scaler.unscale_ and scaler.step the same optimizer, the wrapper",
                )
            self._unscaled.add(id(optimizer))

    def operation(self, name: str, args: tuple[Any, ...]) -> None:
        if name not in SCALINGS or not self._scaled or self._unscaled or not _scales(args):
            return
        held = {p.grad.data_ptr() for p in self.subject.parameters if p.grad is not None}
        if name.startswith("_foreach") and any(t.data_ptr() in held for t in tensors_in(args[:1])):
            self.report(
                "clipped-while-scaled",
                "gradients are clipped while they are still multiplied by the scaler's scale",
                "call scaler.unscale_(optimizer) before clipping",
            )

    def before_step(self, optimizer: Optimizer, closure: bool) -> None:
        if self.is_own(optimizer):
            if self._scaled and not self._unscaled:
                self.report(
                    "step-past-the-scaler",
                    "the step is taken with gradients that are still multiplied by the scaler's scale",
                    "call scaler.step(optimizer) and scaler.update() in place of optimizer.step()",
                )
            self._scaled, self._unscaled = False, set()
