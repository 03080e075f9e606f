"""Directional loss increase: the rise of a batch's loss a step of length ρ away from the weights, by direction."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatsparse.common.tensors import restored
from flatsparse.measure.sharpness import scale_to, worst_case_sharpness

Loss = Callable[[nn.Module, Any], Tensor]  # of the model and a batch, a scalar
IMAGES = 512  # measured on, about: a whole number of batches
RHO = 0.05  # of runs that have none
DEFINITION = (
    "Gains are rises of a batch's loss (batch norm by its own statistics, as in training) a step of length ρ away on active"
    " weights: along that batch's own gradient (SAM), along the previous gradient (S²-SAM), along noise, and the largest"
    " found in the ball (m-sharpness); means over the batches. The cosine is between the previous gradient and each batch's own"
)


@torch.no_grad()
def directional_increases(
    model: nn.Module, directions: Mapping[str, Sequence[Tensor]], loss: Callable[[], float], radius: float
) -> dict[str, float]:
    """The rise of the loss a step along each direction, ``L(w + ρ d/‖d‖) − L(w)``, all at the same norm ρ.

    Ours: the worth of a free direction beside SAM's and beside a random one.

    Args:
        model: the network; its weights are restored bit for bit.
        directions: by name, a tensor for each trained parameter; zero where a mask keeps the weights at zero.
        loss: computes the loss at the weights as they are.
        radius: ρ, in the units of the weights.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    start, increases = loss(), {}
    with restored(parameters) as weights:
        for name, direction in directions.items():
            scale = scale_to(radius, direction)
            for p, w, d in zip(parameters, weights, direction, strict=True):
                p.copy_(w + d * scale)
            increases[name] = loss() - start
    return increases


def mean_increases(
    model: nn.Module,
    batches: Sequence[Any],
    loss_fn: Loss,
    masks: Mapping[str, Tensor],
    rho: float,
    source: torch.Generator,
    previous: Sequence[Tensor] | None = None,
) -> dict[str, float | dict[str, float]]:
    """The mean increases over some batches, ``{"cosine", "gain": {"sam", "previous", "random", "worst"}}``.

    ``worst`` is m-sharpness, the mean worst-case sharpness of batches of m images (Foret et al. 2021, sec. 4.1).

    Args:
        model: in training mode; its weights are restored bit for bit, its running statistics are not.
        loss_fn: the mean loss of a batch, from the model and the batch.
        masks: by the parameter's name; only active weights move.
        source: draws the noise.
        previous: the gradient of the step before, zero outside the masks. By default that of the batch before, at the same
            weights; before the first comes the last.
    """
    results = []
    for index, batch in enumerate(batches):
        before = previous
        if before is None:
            _gradient(model, batches[index - 1], loss_fn)
            before = active_gradients(model, masks)
        results.append(_increases_on(model, batch, loss_fn, before, masks, rho, source))
    means = {name: statistics.fmean(result[name] for result in results) for name in results[0]}
    return {"cosine": means.pop("cosine"), "gain": means}


def active_gradients(model: nn.Module, masks: Mapping[str, Tensor]) -> list[Tensor]:
    """Copies of a model's gradients, zero outside the masks."""
    slopes = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    return [torch.where(masks[name], slope, 0) if name in masks else slope for name, slope in slopes.items()]


def _increases_on(
    model: nn.Module,
    batch: Any,
    loss_fn: Loss,
    previous: Sequence[Tensor],
    masks: Mapping[str, Tensor],
    rho: float,
    source: torch.Generator,
) -> dict[str, float]:
    """The increases on one batch along its gradient, the previous one and noise, the worst case, and the cosine."""
    named = dict(model.named_parameters())
    zero_outside = {named[name]: _zero_outside(mask) for name, mask in masks.items()}
    _gradient(model, batch, loss_fn)
    own = active_gradients(model, masks)
    noise = [torch.randn(p.shape, generator=source).to(p) for p in own]
    for p, drawn in zip(named.values(), noise, strict=True):
        if p in zero_outside:
            zero_outside[p](drawn)
    directions = {"sam": own, "previous": list(previous), "random": noise}
    increases = directional_increases(model, directions, lambda: float(loss_fn(model, batch)), rho)
    worst = worst_case_sharpness(model, zero_outside, lambda: _gradient(model, batch, loss_fn), rho)
    one, other = (torch.cat([t.flatten() for t in tensors]).double() for tensors in (previous, own))
    return {**increases, "worst": worst, "cosine": float(F.cosine_similarity(one, other, dim=0))}


def _gradient(model: nn.Module, batch: Any, loss_fn: Loss) -> float:
    """The loss of a batch, with its gradients in the parameters."""
    model.zero_grad()
    loss = loss_fn(model, batch)
    loss.backward()
    return float(loss.detach())


def _zero_outside(mask: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.mul_(mask)
