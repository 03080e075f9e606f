"""StaleSAM: the gradient at weights perturbed along a stale gradient, one of a small part of the previous batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from flatsparse.common.errors import InputError
from flatsparse.sam.batch_norm import frozen_statistics
from flatsparse.sam.directions import Direction, Tensors, previous_gradient
from flatsparse.sam.optimizers import S2SAM
from flatsparse.schedules import Schedule

STALE = Direction(previous_gradient, "along a stale gradient at the weights, of a small part of a batch")


class StaleSAM(S2SAM):
    """S²-SAM along the gradient that a small part of the previous batch had at the weights themselves, not at perturbed ones.

    Jo, Lim & Lee, "Asynchronous Sharpness-Aware Minimization For Fast and Accurate Deep Learning" (AsyncSAM), arXiv
    2503.11147, with a staleness of one step: ``w + ρ d/‖d‖`` with d the gradient at the weights of the step before. They take
    it beside the step on another device, of as few samples as hide its time. Here it comes after the step's own gradient
    and is hidden by nothing, so that it costs what it takes: 1 + share gradients a step. Of the paper we could read only the
    abstract and summaries; that its samples are of the batch just trained on is our reading.

    Costs one parameter-sized buffer, and another gradient while the step is taken. The first step is unperturbed; no part is
    asked for while every ρ is 0. Batch-norm statistics do not count the part again.

    Args:
        base, rho, adaptive, eta, mask_perturbation, compact, in_place: see ``SharpnessAware``.

    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = StaleSAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05).follow(model)
    >>> batch = torch.ones(8, 2)
    >>> for _ in range(2):
    ...     model(batch).mean().backward()  # at w + e
    ...     optimizer.step(part=lambda: model(batch[:2]).mean().backward())  # at w
    ...     optimizer.zero_grad()
    """

    def __init__(
        self,
        base: Optimizer,
        rho: float | Schedule = 0.05,
        *,
        adaptive: bool = False,
        eta: float = 0.01,
        mask_perturbation: bool = True,
        compact: bool = False,
        in_place: bool = False,
    ) -> None:
        super().__init__(
            base,
            rho,
            direction=STALE,
            adaptive=adaptive,
            eta=eta,
            mask_perturbation=mask_perturbation,
            compact=compact,
            in_place=in_place,
        )

    @torch._disable_dynamo  # type: ignore[attr-defined]
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, part: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take the base's step from w with the gradient found at w + e, then make the next w + e along that of the part.

        Args:
            closure: computes loss and gradients, as for any optimizer; it is called once, at w + e.
            part: computes the loss of a small part of the batch and its gradients; it is called once, at w, and not while
                every ρ is 0. There are no gradients before, and the step's own come back after it.

        Raises: InputError without a part.
        """
        if part is None:
            raise InputError(
                "StaleSAM.step() needs part=, which computes the loss of a small part of the batch and its gradients"
            )
        loss = self._evaluate(closure)  # forward and backward at w + e
        self.perturbation.restore()  # w, bit for bit
        self._check_gradient()
        self.radius.advance()
        stale = self._gradient_of(part)
        self.base.step()
        self._perturb_along(stale)
        return loss

    def _gradient_of(self, part: Callable[[], Any]) -> Tensors:
        """Return the gradient of a part at w; the parameters have the step's own again. None is taken while every ρ is 0."""
        if all(self.radius.of(group) == 0 for group in self.param_groups):
            return {}
        parameters = [p for group in self.param_groups for p in group["params"]]
        # A view may be on memory that the next gradient is written to, as a bucket's of DistributedDataParallel is.
        own = [None if p.grad is None else p.grad.clone() if p.grad._is_view() else p.grad for p in parameters]
        for p in parameters:
            p.grad = None
        try:
            with self.disabled(), frozen_statistics(list(self.followed)), torch.enable_grad():
                part()
            return self.perturbation.gradients()
        finally:
            for p, gradient in zip(parameters, own, strict=True):
                p.grad = gradient
