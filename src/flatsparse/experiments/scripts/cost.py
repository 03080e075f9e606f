"""The cost of an arm: its steps and gradients, counted at its optimizers."""

from __future__ import annotations

import statistics
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from flatsparse.experiments.clock import clock


@dataclass(frozen=True)
class Cost:
    """The cost of one arm with one seed; what cannot be known is None.

    Attributes:
        seconds: of the whole function.
        steps: of the optimizers.
        gradient_evaluations: backward passes through their parameters.
        step_median: the median time from the end of a step to that of the next, in seconds, with all that lies between.
    """

    seconds: float
    steps: int | None
    gradient_evaluations: int | None
    step_median: float | None


class StepMeter:
    """Hooks on an optimizer that count its steps, and the gradients that one of its parameters gets.

    Ours, because a loop of a user's own cannot be asked. Every parameter is counted in the first step, and then only the one
    that got most, as a hook on each would cost a small net some per cent.
    """

    def __init__(self, base: Optimizer) -> None:
        self.steps = 0
        self.ends = array("d")
        self._counts: dict[Tensor, int] = {}
        params = [p for group in base.param_groups for p in group["params"] if p.requires_grad and p.is_leaf]
        self._handles: dict[Tensor, Any] = {p: p.register_post_accumulate_grad_hook(self._arrived) for p in params}
        base.register_step_post_hook(self._stepped)

    @property
    def gradients(self) -> int:
        """The number of gradients taken."""
        return max(self._counts.values(), default=0)

    @property
    def times(self) -> list[float]:
        """The time of each step but the first, in seconds."""
        return [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]

    @torch._disable_dynamo  # type: ignore[attr-defined]  # a traced hook would count once for all
    def _arrived(self, p: Tensor) -> None:
        self._counts[p] = self._counts.get(p, 0) + 1

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def _stepped(self, *_: Any) -> None:
        self.steps += 1
        self.ends.append(clock())
        if self.steps == 1:
            kept = max(self._counts, key=self._counts.__getitem__, default=None)
            for p, handle in self._handles.items():
                if p is not kept:
                    handle.remove()


def cost_of(seconds: float, meters: Sequence[StepMeter]) -> Cost:
    """Return the cost of an arm by its meters, one for each of its optimizers."""
    steps, gradients = sum(meter.steps for meter in meters), sum(meter.gradients for meter in meters)
    times = [t for meter in meters for t in meter.times]
    return Cost(seconds, steps or None, gradients or None, statistics.median(times) if times else None)
