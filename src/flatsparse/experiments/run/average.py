"""The moving average of a run's weights, which is evaluated and saved in their place where the run asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Lists = tuple[Tensor, ...] | list[Tensor]


class WeightAverage:
    """The exponential moving average of a network's weights and buffers over its steps, zero outside the masks.

    After t steps the decay is ``min(decay, (1 + t) / (10 + t))``, so that a short run is not averaged with its initial weights,
    as in TensorFlow, which trains EfficientNet so (Tan & Le 2019). Integers, such as counts of batches, are copied.

    Attributes:
        model: the network with the averages.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._averaged = AveragedModel(model, multi_avg_fn=_towards(decay), use_buffers=True)

    @property
    def model(self) -> nn.Module:
        """The network with the averages."""
        averaged: nn.Module = self._averaged.module
        return averaged

    @torch.no_grad()
    def update(self, model: nn.Module, new_masks: Mapping[str, Tensor] | None = None) -> None:
        """Take in the weights after a step; the masks are given when they changed in it."""
        self._averaged.update_parameters(model)
        if new_masks:
            weights = dict(self.model.named_parameters())
            for name, mask in new_masks.items():
                weights[name].mul_(mask)

    def restart(self) -> None:
        """Forget what was averaged: the next step's weights are the first."""
        self._averaged.n_averaged.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Return the averages and the number of steps in them."""
        return self._averaged.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what ``state_dict`` gave."""
        self._averaged.load_state_dict(state)


def _towards(decay: float) -> Callable[[Lists, Lists, Tensor | int], None]:
    """Return the function that moves tensors of averages towards those of a network, given the number of steps so far."""

    def move(averages: Lists, tensors: Lists, steps: Tensor | int) -> None:
        if not averages[0].is_floating_point():
            torch._foreach_copy_(averages, tensors)
            return
        t = int(steps)
        torch._foreach_lerp_(averages, tensors, 1 - min(decay, (1 + t) / (10 + t)))

    return move
