"""The moving average of a run's weights, which is evaluated and saved in their place where the run asks for it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """The exponential moving average of a network's weights and buffers over its steps, zero where the weights are masked.

    After t steps the decay is ``min(decay, (1 + t) / (10 + t))``, so that a short run is not averaged with its initial weights:
    TensorFlow's moving average does so, with which EfficientNet was trained (Tan & Le 2019). Integers, such as counts of
    batches, are copied.

    Attributes:
        model: the network with the averages.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model)
        self._decay, self._steps = decay, 0

    @torch.no_grad()
    def update(
        self, model: nn.Module, zeroing: Mapping[nn.Parameter, Callable[[Tensor], Tensor]] | None = None
    ) -> None:
        """Take in the weights after a step; what zeroes each masked one is given where masks changed in it."""
        t = self._steps
        share = 1 - min(self._decay, (1 + t) / (10 + t)) if t else 1.0
        for average, tensor in zip(_tensors(self.model), _tensors(model), strict=True):
            if share < 1 and (average.is_floating_point() or average.is_complex()):
                # What is equal stays, as the infinities of an attention mask, whose difference is not a number.
                average.copy_(torch.where(average == tensor, tensor, torch.lerp(average, tensor, share)))
            else:
                average.copy_(tensor)
        self._steps += 1
        if zeroing:
            for p, average in zip(model.parameters(), self.model.parameters(), strict=True):
                if p in zeroing:
                    zeroing[p](average)

    def restart(self) -> None:
        """Forget what was averaged: the next step's weights are the first."""
        self._steps = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the averages and the number of steps in them."""
        return {"model": self.model.state_dict(), "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what ``state_dict`` gave."""
        self.model.load_state_dict(state["model"])
        self._steps = state["steps"]


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return itertools.chain(model.parameters(), model.buffers())
