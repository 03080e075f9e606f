"""How the loss rises near the weights: the largest found in a ball around them, and along given directions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

STEPS = 5
DEFINITION = (
    "the largest increase of the mean cross-entropy on training images (evaluation mode, labels as trained on, no"
    " augmentation) found within a Euclidean ball of the radius around the final weights, moving live weights only, by"
    f" {STEPS} projected steps of normalized gradient ascent; a lower bound of the true maximum"
)


def ball_increase(
    model: nn.Module,
    masks: Mapping[nn.Parameter, Callable[[Tensor], Tensor]],
    gradient: Callable[[], float],
    radius: float,
) -> float:
    """The largest increase of a loss found within ``‖e‖ ≤ radius`` (SAM's inner problem: Foret et al. 2021, eq. 1).

    Ours in the search: after SAM's own first-order step to the sphere, steps of half the radius, each projected back.

    Args:
        model: the network; its weights are put back bit for bit.
        masks: for each masked parameter, what zeroes a tensor outside its mask.
        gradient: computes the loss and its gradients at the weights as they are, and returns the loss.
        radius: in the units of the weights.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    true = [p.detach().clone() for p in parameters]
    offset = [torch.zeros_like(p) for p in true]
    highest = start = gradient()
    try:
        for step in range(STEPS):
            slopes = [torch.zeros_like(w) if p.grad is None else p.grad for p, w in zip(parameters, true, strict=True)]
            for p, slope in zip(parameters, slopes, strict=True):
                masks.get(p, _as_is)(slope)
            _add_scaled(offset, slopes, radius if step == 0 else radius / 2)
            _project(offset, radius)
            with torch.no_grad():
                for p, w, e in zip(parameters, true, offset, strict=True):
                    p.copy_(w + e)
            highest = max(highest, gradient())
    finally:
        with torch.no_grad():
            for p, w in zip(parameters, true, strict=True):
                p.copy_(w)
                p.grad = None
    return highest - start


def m_sharpness(
    model: nn.Module,
    masks: Mapping[nn.Parameter, Callable[[Tensor], Tensor]],
    gradients: Iterable[Callable[[], float]],
    radius: float,
) -> list[float]:
    """``ball_increase`` for each batch by itself (m-sharpness is their mean, m images a batch: Foret et al. 2021, sec. 4.1).

    Args:
        model, masks, radius: see ``ball_increase``.
        gradients: for each batch, what computes its loss and gradients.
    """
    return [ball_increase(model, masks, gradient, radius) for gradient in gradients]


@torch.no_grad()
def gains(
    model: nn.Module, directions: Mapping[str, Sequence[Tensor]], loss: Callable[[], float], radius: float
) -> dict[str, float]:
    """How much the loss rises a step along each direction, ``L(w + ρ d/‖d‖) − L(w)``, all at the same norm ρ.

    Ours: what a free direction is worth beside SAM's and beside a random one.

    Args:
        model: the network; its weights are put back bit for bit.
        directions: by name, a tensor for each trained parameter; what a mask shall keep still is zero in them.
        loss: computes the loss at the weights as they are.
        radius: ρ, in the units of the weights.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    true = [p.detach().clone() for p in parameters]
    start, found = loss(), {}
    try:
        for name, direction in directions.items():
            scale = radius / (_norm(direction) + 1e-12)
            for p, w, d in zip(parameters, true, direction, strict=True):
                p.copy_(w + d * scale)
            found[name] = loss() - start
    finally:
        for p, w in zip(parameters, true, strict=True):
            p.copy_(w)
    return found


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t) for t in tensors]))


def _add_scaled(offset: list[Tensor], direction: list[Tensor], length: float) -> None:
    scale = length / (_norm(direction) + 1e-12)
    for e, d in zip(offset, direction, strict=True):
        e.add_(d * scale)


def _project(offset: list[Tensor], radius: float) -> None:
    scale = (radius / (_norm(offset) + 1e-12)).clamp(max=1.0)
    for e in offset:
        e.mul_(scale)


def _as_is(tensor: Tensor) -> Tensor:
    return tensor
