"""Worst-case sharpness (ε-sharpness): the largest increase of a loss found within a ball around the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from flatsparse.common.distributed import norm
from flatsparse.common.tensors import restored

# For each masked parameter a function that zeroes a tensor of its shape outside the mask, in place, and returns it.
ZeroOutside = Mapping[nn.Parameter, Callable[[Tensor], Tensor]]

STEPS = 5


def definition(loss: str = "cross-entropy", samples: str = "images") -> str:
    """The definition of the worst-case sharpness in words, of a loss on training samples of some kind."""
    return (
        f"the largest increase of the mean {loss} on training {samples} (evaluation mode, labels as trained on, no"
        " augmentation) found within a Euclidean ball of the radius around the final weights, moving active weights only, by"
        f" {STEPS} projected steps of normalized gradient ascent; a lower bound of the true maximum"
    )


def worst_case_sharpness(model: nn.Module, masks: ZeroOutside, gradient: Callable[[], float], radius: float) -> float:
    """The largest increase of a loss found within ``‖e‖ ≤ radius`` (SAM's inner problem: Foret et al. 2021, eq. 1).

    Ours in the search: after SAM's own first-order step to the sphere, steps of half the radius, each projected back.

    Args:
        model: the network; its weights are restored bit for bit, its gradients are cleared.
        masks: see ``ZeroOutside``.
        gradient: computes the loss and its gradients at the weights as they are, and returns the loss.
        radius: in the units of the weights.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    offset = [torch.zeros_like(p, requires_grad=False) for p in parameters]
    highest = start = gradient()
    try:
        with restored(parameters) as weights:
            for step in range(STEPS):
                slopes = [_slope(p, masks) for p in parameters]
                _ascend(offset, slopes, radius if step == 0 else radius / 2, radius)
                _move(parameters, weights, offset)
                highest = max(highest, gradient())
    finally:
        for p in parameters:
            p.grad = None
    return highest - start


def scale_to(length: float, tensors: Sequence[Tensor]) -> Tensor:
    """The factor that brings tensors, as one vector, to a length."""
    own = norm(tensors)
    assert own is not None  # there are tensors
    return length / (own + 1e-12)


def _slope(p: nn.Parameter, masks: ZeroOutside) -> Tensor:
    """The gradient of a parameter, zero outside its mask."""
    if p.grad is None:
        return torch.zeros_like(p, requires_grad=False)
    return masks[p](p.grad) if p in masks else p.grad


def _ascend(offset: Sequence[Tensor], slopes: Sequence[Tensor], length: float, radius: float) -> None:
    """Take a normalized gradient step of a length, and project back to the ball, in place."""
    scale = scale_to(length, slopes)
    for e, slope in zip(offset, slopes, strict=True):
        e.add_(slope * scale)
    shrink = scale_to(radius, offset).clamp(max=1.0)
    for e in offset:
        e.mul_(shrink)


@torch.no_grad()
def _move(parameters: Sequence[Tensor], weights: Sequence[Tensor], offset: Sequence[Tensor]) -> None:
    for p, w, e in zip(parameters, weights, offset, strict=True):
        p.copy_(w + e)
