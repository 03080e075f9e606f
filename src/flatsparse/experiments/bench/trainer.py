"""One variant: a network in training that can be stepped, and timed inside the optimizer and outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flatsparse.api import sparsify
from flatsparse.experiments.bench.cases import Batch, Case, loss
from flatsparse.experiments.bench.variants import BASES, Variant
from flatsparse.experiments.clock import clock
from flatsparse.methods import FIXED

FOREVER = 10**9  # steps: no run ends while it is measured


@dataclass(frozen=True)
class Timing:
    """One step, in seconds.

    Attributes:
        step: all of it: clearing gradients, forward, backward, optimizer.
        optimizer: what the optimizer took of it: its step, and what runs when the model is called and when it returns.
            None where the step holds a forward.
    """

    step: float
    optimizer: float | None


class Trainer:
    """A case's network with a variant's optimizer; equal seeds give equal networks and masks.

    Args:
        case, variant: what is trained, and how.
        method, sparsity, options: of ``sparsify``; without sparsity the net is dense.
        device: where.
        base: what the variant is around, of ``BASES``.
    """

    def __init__(
        self,
        case: Case,
        variant: Variant,
        *,
        sparsity: float = 0.0,
        method: str = FIXED,
        device: str = "cpu",
        base: str = "sgd",
        **options: Any,
    ) -> None:
        torch.manual_seed(0)
        self.device, self.passes = device, variant.passes
        self.model: nn.Module = case.model().to(device).train()
        self.optimizer = variant.around(BASES[base][1](self.model), self.model)
        self._training = (
            sparsify(self.model, self.optimizer, method, sparsity=sparsity, steps=FOREVER, **options)
            if sparsity
            else None
        )
        # The optimizer hangs its hooks on the model, so the clock has one before the first and one after the last of them.
        self._inside = self._since = 0.0
        self.model.register_forward_pre_hook(self._start, prepend=True)
        self.model.register_forward_pre_hook(self._stop)
        self.model.register_forward_hook(self._start, prepend=True)
        self.model.register_forward_hook(self._stop)

    def step(self, batch: Batch) -> Timing:
        """Take one whole step and time it."""
        inputs, targets = batch

        def gradient() -> torch.Tensor:
            self.optimizer.zero_grad()
            value = loss(self.model(inputs), targets)
            value.backward()
            return value

        self._inside = 0.0
        began = self._clock()
        if self.passes == 2:
            self.optimizer.step(gradient)
            return Timing(self._clock() - began, None)
        gradient()
        self._start()
        self.optimizer.step()
        self._stop()
        return Timing(self._clock() - began, self._inside)

    def due(self, step: int) -> bool:
        """True where the masks change at a step, counted from 1."""
        return self._training is not None and bool(self._training.due(step))

    def _start(self, *_: Any) -> None:
        self._since = self._clock()

    def _stop(self, *_: Any) -> None:
        self._inside += self._clock() - self._since

    def _clock(self) -> float:
        return clock(self.device)
