"""What a net costs in floating-point operations, layer by layer, given its masks. A multiply-add counts as 2."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from flatsparse.errors import InputError
from flatsparse.masks import prunable_weights
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
        if strange := [name for name in masks if name not in self.layers]:
            raise InputError(
                f"the operations of layer '{strange[0]}' cannot be counted: give it no mask, or count by hand"
            )
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
    modes = {module: module.training for module in model.modules()}
    counter = FlopCounterMode(display=False)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it is one operation that the counter does not know
    try:
        with torch.no_grad(), counter:
            model.eval()(sample)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, training in modes.items():
            module.training = training
    counts = {name: sum(by_kind.values()) // len(sample) for name, by_kind in counter.get_flop_counts().items()}
    root = type(model).__name__
    owners = {id(p): name for name, m in model.named_modules() for p in m.parameters(recurse=False)}
    layers: dict[str, int] = {}
    for name, (p, by_default) in prunable_weights(model).items():
        owner = owners[id(p)]
        if by_default and (full := f"{root}.{owner}" if owner else root) in counts:
            layers[name] = counts[full]
    return Cost(layers, other=counter.get_total_flops() // len(sample) - sum(layers.values()))


def step_flops(forward: float, dense: float, passes: int, due: Iterable[Rule], momentum: bool = False) -> float:
    """One training step on one sample (Evci et al. 2020, app. H: a backward pass costs two forward passes).

    Args:
        forward, dense: the forward pass under the masks, and without any.
        passes: gradients taken in the step, 2 for SAM.
        due: the rules that act at this step; one that reads dense gradients makes that part of one backward dense.
        momentum: whether a running average of dense gradients is kept, which makes it dense at every step.
    """
    extra = dense - forward if momentum or any(rule.dense_gradient for rule in due) else 0.0
    return 3 * forward * passes + extra
