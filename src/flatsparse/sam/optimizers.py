"""SAM and S²-SAM."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatsparse.common.errors import InputError
from flatsparse.sam.base import SharpnessAware
from flatsparse.sam.base_step import masked_step, unmasked_step
from flatsparse.sam.batch_norm import frozen_statistics
from flatsparse.sam.compiled_step import CompiledStep, check_kernel
from flatsparse.sam.directions import Direction, Tensors, direction_of
from flatsparse.sam.perturbed_weights import Store
from flatsparse.sam.state_entry import PERTURBED, StateEntry, begun
from flatsparse.schedules import Schedule

Loss = TypeVar("Loss")  # of a closure: a tensor or a number


class S2SAM(SharpnessAware):
    """Single-step SAM: each step's only gradient is taken at ``w + ρ g/‖g‖``, with g the previous step's gradient.

    Ji et al., "A Single-Step, Sharpness-Aware Minimization is All You Need to Achieve Efficient and Accurate Sparse
    Training", NeurIPS 2024, eq. 5-7. The base's decay and momentum act on w. The first step is unperturbed (the
    paper leaves it open). The paper says nothing of masks; here direction, norm and perturbation live on the active
    weights, and all parameters, biases and norms included, are perturbed.

    Costs one gradient a step and one parameter-sized buffer, u, which is made in ``step`` from the gradient.

    Args:
        base, rho, adaptive, eta, mask_perturbation, compact, in_place: see ``SharpnessAware``. The paper uses ρ = 0.05 on
            CIFAR and 1.0 on ImageNet, and its Remark 1 a falling ``flatsparse.schedules.InverseSqrt(0.05)``.
        direction: ``"previous"`` (the paper) or another of ``flatsparse.sam.directions.DIRECTIONS``, or a function of the
            optimizer and the gradients that gives a direction for each parameter.
        seed: of the random direction.
        kernel: take the base's step and make the perturbed weights in one compiled pass; for ``SGD`` with momentum, ``Adam``
            and ``AdamW`` on float32 weights on a CPU, along the previous gradient. Built by the machine's C compiler when
            first used.

    Raises: InputError for a choice that cannot be met.

    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = S2SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05).follow(model)
    >>> for _ in range(2):
    ...     model(torch.ones(4, 2)).mean().backward()  # a training forward runs at w + e
    ...     optimizer.step()  # takes the step from w
    ...     optimizer.zero_grad()
    """

    _copied: ClassVar = (*SharpnessAware._copied, "direction", "seed", "kernel")

    def __init__(
        self,
        base: Optimizer,
        rho: float | Schedule = 0.05,
        *,
        direction: str | Direction | Callable[[Any, Tensors], Tensors] = "previous",
        seed: int = 0,
        adaptive: bool = False,
        eta: float = 0.01,
        mask_perturbation: bool = True,
        compact: bool = False,
        in_place: bool = False,
        kernel: bool = False,
    ) -> None:
        direction_of(direction)  # refuses a name that is unknown
        self.direction, self.seed, self.kernel = direction, seed, kernel
        if kernel:
            check_kernel(base, plain=direction == "previous" and mask_perturbation and not (adaptive or compact))
        super().__init__(
            base,
            rho,
            adaptive=adaptive,
            eta=eta,
            mask_perturbation=mask_perturbation,
            compact=compact,
            in_place=in_place,
        )

    def _store(self, base: Optimizer) -> Store:
        """The store of the perturbed weights: the state, which is saved."""
        return StateEntry(base, PERTURBED)

    def follow(self, model: nn.Module) -> S2SAM:
        """Run each forward of the model in training mode, with gradients on, at w + e; ``step`` restores w.

        Until then evaluation without gradients and ``model.state_dict()`` see w; evaluation with gradients on,
        ``load_state_dict`` and ``eval()`` restore it. Direct reads and ``deepcopy`` see w + e.

        Raises: InputError for a model that has already run compiled (its graph would miss the perturbation).
        """
        super().follow(model)
        return self

    def perturb(self) -> None:
        """Let this forward, and its backward, run at w + e."""
        self.checks.skipped = ""
        self.perturbation.apply()

    def note_forward(self, module: nn.Module) -> None:
        """Take note of a forward at w + e."""
        self.checks.note_forward(module, self)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], Loss]) -> Loss: ...

    # A traced step would make perturbed weights once; the base's own step may be compiled.
    @torch._disable_dynamo  # type: ignore[attr-defined]
    @torch.no_grad()
    def step(self, closure: Callable[[], Loss] | None = None) -> Loss | None:
        """Take the base's step from w with the gradient found at w + e, then make the next w + e.

        Args:
            closure: computes loss and gradients, as for any optimizer; it is called once, at w + e.
        """
        loss = self._evaluate(closure)  # forward and backward at w + e
        self.perturbation.restore()  # w, bit for bit
        self._check_gradient()
        gradients = self._step_base()  # from w; masks and rules act in its hooks
        self._perturb_along(gradients)  # w + ρ d/‖d‖, for the next step
        return loss

    def _evaluate(self, closure: Callable[[], Loss] | None) -> Loss | None:
        """Call a closure at w + e. Returns the loss."""
        if closure is None:
            return None
        was_applied, before = self.perturbation.was_applied, self._last_gradient()
        with torch.enable_grad(), self.perturbed():
            loss = closure()
        (gradient, version), (same, then) = before, self._last_gradient()
        if (
            gradient is not None and gradient is same and version == then
        ):  # the closure is empty: gradients came before it
            self.perturbation.was_applied = was_applied
        return loss

    def _last_gradient(self) -> tuple[Tensor | None, int]:
        """Return one parameter's gradient and its version, by which a closure is known that takes none: an empty one."""
        params = reversed(self.param_groups[-1]["params"])
        grad = next((p.grad for p in params if p.grad is not None), None)
        return grad, -1 if grad is None else grad._version

    def is_packable(self) -> bool:
        """Return whether weights may be packed; noise has as many numbers as the whole weights, and so must not change."""
        return super().is_packable() and direction_of(self.direction).within_masks

    def _check_gradient(self) -> None:
        """Warn of a gradient that was not taken at w + e though there was one, for this would be the plain base."""
        missed = self.perturbation.weights.exist and not self.perturbation.was_applied
        skipped = self.checks.skipped
        self.checks.end_step()
        if missed and self.perturbation.gradients():
            cure = ": call optimizer.follow(model), or run forward and backward inside optimizer.perturbed()"
            plain = f"two steps without a perturbed forward, so this is plain {type(self.base).__name__}"
            self.warn("unperturbed", plain + (skipped or cure))

    def _step_base(self) -> Tensors | None:
        """Take the base's step. Returns the gradients for the next direction; None if the compiled pass has gone along them."""
        self.radius.advance()
        if self.kernel:
            return self._compiled_step(self.perturbation)
        take_step = masked_step if self.perturbation.options.mask_perturbation else unmasked_step
        return take_step(self.perturbation)

    @cached_property
    def _compiled_step(self) -> CompiledStep:
        return CompiledStep()

    def _perturb_along(self, gradients: Tensors | None) -> None:
        """Make the next perturbed weights, along the direction that the gradients give."""
        if gradients is not None:
            direction = direction_of(self.direction)
            directions = direction.find(self, begun(self.base, gradients))
            if not direction.within_masks:
                for p, masked in self.perturbation.masks.items():
                    if p in directions:
                        masked.zero_outside(directions[p])
            self.perturbation.make(directions, downhill=direction.downhill)
        self.checks.begin_step(self)


class SAM(SharpnessAware):
    """Sharpness-aware minimization: the gradient is taken at ``w + ρ g/‖g‖``, with g this batch's own gradient at w.

    Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", ICLR 2021, Alg. 1 with
    p = 2. Costs two gradients a step, and a parameter-sized buffer while the second is taken.

    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = model(torch.ones(4, 2)).mean()
    ...     loss.backward()
    ...     return loss
    >>> loss = optimizer.step(closure)  # the loss at w, before the step
    """

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """A context in which the parameters hold w + e, with e along the gradients they have on entry.

        The gradients are yours to clear inside. Batch-norm statistics are restored at its end, because the first pass has
        already counted this batch.
        """
        for p, masked in self.perturbation.masks.items():
            if p.grad is not None:
                masked.zero_outside(p.grad)
        # Gradients without a name of ours, so that they can be freed inside.
        self.perturbation.make(self.perturbation.gradients())
        with frozen_statistics(list(self.followed)):
            try:
                with self.perturbation.applied():
                    yield
            finally:
                self.perturbation.weights.forget()

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], Loss]) -> Loss: ...

    @torch._disable_dynamo  # type: ignore[attr-defined]
    @torch.no_grad()
    def step(self, closure: Callable[[], Loss] | None = None) -> Loss | None:
        """Take a step with the gradient at w + e.

        Args:
            closure: clears the gradients, computes the loss and its gradients. It is called twice, once when every
                ρ is 0. Without one, the second gradient must have been taken inside ``perturbed()``.

        Returns: the loss at w.
        Raises: InputError without a closure and without a gradient from ``perturbed()``.
        """
        loss = self._evaluate(closure)  # at w, then at w + ρ g/‖g‖
        self.perturbation.restore()  # w, bit for bit, when the step is taken inside perturbed()
        self.checks.end_step()
        self.base.step()  # from w
        self.radius.advance()
        return loss

    def _evaluate(self, closure: Callable[[], Loss] | None) -> Loss | None:
        """Take the gradient at w, and then at w + e. Returns the loss at w."""
        aware = any(self.radius.of(group) != 0 for group in self.param_groups)
        if closure is None:
            if aware and not self.perturbation.was_applied:
                raise InputError(
                    "SAM.step() has no second gradient: give it a closure, or take the gradient inside"
                    " optimizer.perturbed(); S2SAM needs neither"
                )
            return None
        with torch.enable_grad():
            loss = closure()
            if aware:
                with self.perturbed():
                    self.zero_grad()
                    closure()
        return loss
