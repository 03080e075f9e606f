"""Changes that a trained network meets after training: rounded weights, more pruning, noise. Each changes a network in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from flatsparse.common.weight_layout import inputs_first, outputs_first


@torch.no_grad()
def round_weights(model: nn.Module, bits: int) -> None:
    """Round every weight matrix to integers of some bits times a scale for each output channel, to the nearest.

    Symmetric: the scale is the channel's largest magnitude over ``2^(bits−1) − 1``, so that zeros stay zeros (Krishnamoorthi,
    arXiv 1806.08342, sec. 2.2 and 3.1.2). The network still computes in floating point.

    Args:
        model: its weights of at least two dimensions are rounded; biases and the scales of norms are left.
        bits: at least 2.

    >>> layer = nn.Linear(3, 1)
    >>> layer.weight.data = torch.tensor([[0.7, 0.24, -0.06]])
    >>> round_weights(layer, 4)
    >>> [round(value, 3) for value in layer.weight[0].tolist()]
    [0.7, 0.2, -0.1]
    """
    most = 2 ** (bits - 1) - 1
    for _, weight, groups in _matrices(model):
        rows = outputs_first(weight, groups)
        scale = rows.flatten(1).abs().amax(1).float() / most
        scale = scale.clamp_min(torch.finfo(torch.float32).tiny)  # of rows that are zero
        zero = torch.zeros(len(scale), dtype=torch.int32, device=scale.device)
        rounded = torch.fake_quantize_per_channel_affine(rows.float().contiguous(), scale, zero, 0, -most, most)
        weight.copy_(outputs_first(rounded, groups))


@torch.no_grad()
def prune_active(model: nn.Module, masks: Mapping[str, Tensor], fraction: float) -> None:
    """Set a fraction of each weight matrix's active weights to zero, those of the smallest magnitude, without retraining.

    Ours: in each matrix alike, so that no layer is lost; a matrix without a mask is active wherever it is not zero.

    Args:
        masks: bool tensors by parameter name.
        fraction: of the active weights of each matrix, from 0 to 1; rounded down to whole weights.

    >>> layer = nn.Linear(4, 1)
    >>> layer.weight.data = torch.tensor([[3.0, -1.0, 2.0, 0.0]])
    >>> prune_active(layer, {}, 0.5)
    >>> layer.weight.tolist()
    [[3.0, 0.0, 2.0, 0.0]]
    """
    for name, weight, _ in _matrices(model):
        active = _active(name, weight, masks)
        count = int(fraction * int(active.sum()))
        if count:
            magnitudes = torch.where(active, weight.abs(), torch.inf).flatten()
            weight.view(-1)[magnitudes.topk(count, largest=False).indices] = 0


@torch.no_grad()
def add_noise(model: nn.Module, masks: Mapping[str, Tensor], level: float, source: torch.Generator) -> None:
    """Add Gaussian noise to the active weights of each matrix, in units of the standard deviation of these.

    Ours: a stand-in for imprecise storage, alike for all layers whatever their scale.

    Args:
        masks: bool tensors by parameter name; see ``prune_active`` for a matrix without one.
        level: the noise's standard deviation over that of the matrix's active weights.
        source: draws the noise, on the CPU.
    """
    for name, weight, _ in _matrices(model):
        active = _active(name, weight, masks)
        drawn = torch.randn(weight.shape, generator=source).to(weight)
        if int(active.sum()) > 1:
            weight.add_(torch.where(active, drawn * (level * weight[active].std()), 0))


def _matrices(model: nn.Module) -> Iterator[tuple[str, Tensor, int]]:
    """Each weight of at least two dimensions once, with its name and how its layer stores it: see ``inputs_first``."""
    seen = set[int]()
    for place, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim >= 2 and id(parameter) not in seen:
                seen.add(id(parameter))
                groups = inputs_first(module) if name == "weight" else 0
                yield f"{place}.{name}" if place else name, parameter, groups


def _active(name: str, weight: Tensor, masks: Mapping[str, Tensor]) -> Tensor:
    return masks[name].to(weight.device) if name in masks else weight != 0
