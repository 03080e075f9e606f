"""What a net costs in floating-point operations, layer by layer, given its masks. A multiply-add counts as 2."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from flatsparse.masks import PRUNABLE, plain_name
from flatsparse.rules import Rule


@dataclass(frozen=True)
class Cost:
    """The operations of one sample's forward pass in the dense net.

    Attributes:
        layers: by the name of the layer's weight.
        other: what no prunable layer does.
    """

    layers: Mapping[str, int]
    other: int

    @property
    def dense(self) -> int:
        """The forward pass of the dense net."""
        return sum(self.layers.values()) + self.other

    def forward(self, masks: Mapping[str, Tensor]) -> float:
        """The forward pass when each layer does only what its live weights ask for; layers without a mask are dense."""
        density = {name: float(mask.float().mean()) for name, mask in masks.items()}
        return sum(flops * density.get(name, 1.0) for name, flops in self.layers.items()) + self.other


def cost(model: nn.Module, sample: Tensor) -> Cost:
    """Count the operations of a forward pass with torch's own counter: convolutions and matrix products only.

    Args:
        model: the network; it is run once, in evaluation mode and without gradients.
        sample: one input with its batch dimension, which is divided out.

    >>> cost(nn.Sequential(nn.Linear(20, 10)), torch.ones(1, 20)).layers
    {'0.weight': 400}
    """
    training = model.training
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.eval()(sample)
    model.train(training)
    counts = counter.get_flop_counts()
    root = type(model).__name__
    layers = {
        plain_name(f"{name}.weight" if name else "weight"): sum(counts[f"{root}.{name}" if name else root].values())
        for name, module in model.named_modules()
        if isinstance(module, PRUNABLE) and (f"{root}.{name}" if name else root) in counts
    }
    layers = {name: flops // len(sample) for name, flops in layers.items()}
    return Cost(layers, other=counter.get_total_flops() // len(sample) - sum(layers.values()))


def step_flops(forward: float, dense: float, passes: int, due: Iterable[Rule]) -> float:
    """One training step on one sample (Evci et al. 2020, app. H: a backward pass costs two forward passes).

    Args:
        forward, dense: the forward pass under the masks, and without any.
        passes: gradients taken in the step, 2 for SAM.
        due: the rules that act at this step; one that reads dense gradients makes that part of one backward dense.
    """
    extra = dense - forward if any(rule.dense_gradient for rule in due) else 0.0
    return 3 * forward * passes + extra
