"""The order of a weight's dimensions: outputs first, as in most layers, or inputs first."""

from __future__ import annotations

from torch import Tensor, nn


def inputs_first(module: nn.Module) -> int:
    """The number of groups in a layer whose weight stores its inputs first; 0 for all other layers.

    Most layers store (outputs, inputs, …). Transposed convolutions store (inputs, outputs/groups, …), and the Conv1D of
    transformers (inputs, outputs). The rows of an embedding count as its outputs, as in the linear layer that it may
    be tied to.
    """
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return module.groups
    return int(is_conv1d(module))


def outputs_first(values: Tensor, groups: int) -> Tensor:
    """A tensor of a weight's shape, turned to (outputs, inputs, …), and turned back by a second call.

    Args:
        values: as the layer stores its weight.
        groups: see ``inputs_first``.

    >>> import torch
    >>> outputs_first(torch.zeros(6, 2, 5), groups=3).shape  # the groups have 2 inputs and 2 outputs each
    torch.Size([6, 2, 5])
    >>> outputs_first(torch.zeros(6, 2, 5), groups=1).shape
    torch.Size([2, 6, 5])
    """
    return values.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1) if groups else values


def is_conv1d(module: nn.Module) -> bool:
    """True for the Conv1D of transformers, a linear layer that stores (inputs, outputs); recognized by its structure."""
    named = any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)
    weight = getattr(module, "weight", None)
    return named and isinstance(weight, Tensor) and weight.ndim == 2 and getattr(module, "nf", None) == weight.shape[1]
