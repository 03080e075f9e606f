"""What each direction gains in the loss of a batch, a step of length ρ away from the weights."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatsparse.measure.sharpness import gains, m_sharpness

Batch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]  # of outputs and targets, a scalar
IMAGES = 512  # looked at, about: a whole number of batches
RHO = 0.05  # of runs that have none
DEFINITION = (
    "Gains are rises of a batch's loss (batch norm by its own statistics, as in training) a step of length ρ away on live"
    " weights: along that batch's own gradient (SAM), along the previous gradient (S²-SAM), along noise, and the largest"
    " found in the ball (m-sharpness); means over the batches. The cosine is between the previous gradient and each batch's own"
)


def look_around(
    model: nn.Module,
    batches: Sequence[Batch],
    loss_fn: Loss,
    masks: Mapping[str, Tensor],
    rho: float,
    source: torch.Generator,
    previous: Sequence[Tensor] | None = None,
) -> dict[str, float | dict[str, float]]:
    """The mean gains over some batches, ``{"cosine", "gain": {"sam", "previous", "random", "worst"}}``.

    Args:
        model: in training mode; its weights come back bit for bit, its running statistics do not.
        loss_fn: the mean loss of a batch, from outputs and targets.
        masks: by the parameter's name; only live weights move.
        source: draws the noise.
        previous: the gradient of the step before, zero outside the masks. By default that of the batch before, at the same
            weights; before the first comes the last.
    """
    found = []
    for place, batch in enumerate(batches):
        before = previous
        if before is None:
            _gradient(model, batches[place - 1], loss_fn)
            before = live_gradients(model, masks)
        found.append(_gains_on(model, batch, loss_fn, before, masks, rho, source))
    means = {name: statistics.fmean(gained[name] for gained in found) for name in found[0]}
    return {"cosine": means.pop("cosine"), "gain": means}


def live_gradients(model: nn.Module, masks: Mapping[str, Tensor]) -> list[Tensor]:
    """A copy of a model's gradients, zero outside the masks."""
    slopes = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    return [torch.where(masks[name], slope, 0) if name in masks else slope for name, slope in slopes.items()]


def _gains_on(
    model: nn.Module,
    batch: Batch,
    loss_fn: Loss,
    previous: Sequence[Tensor],
    masks: Mapping[str, Tensor],
    rho: float,
    source: torch.Generator,
) -> dict[str, float]:
    named = dict(model.named_parameters())
    zeroing = {named[name]: _zeroing(mask) for name, mask in masks.items()}
    _gradient(model, batch, loss_fn)
    own = live_gradients(model, masks)
    noise = [torch.randn(p.shape, generator=source).to(p) for p in own]
    for p, drawn in zip(named.values(), noise, strict=True):
        if p in zeroing:
            zeroing[p](drawn)
    directions = {"sam": own, "previous": list(previous), "random": noise}
    found = gains(model, directions, lambda: float(_loss(model, batch, loss_fn)), rho)
    (worst,) = m_sharpness(model, zeroing, [lambda: _gradient(model, batch, loss_fn)], rho)
    one, other = (torch.cat([t.flatten() for t in tensors]).double() for tensors in (previous, own))
    return {**found, "worst": worst, "cosine": float(F.cosine_similarity(one, other, dim=0))}


def _loss(model: nn.Module, batch: Batch, loss_fn: Loss) -> Tensor:
    inputs, targets = batch
    return loss_fn(model(inputs), targets)


def _gradient(model: nn.Module, batch: Batch, loss_fn: Loss) -> float:
    model.zero_grad()
    loss = _loss(model, batch, loss_fn)
    loss.backward()
    return float(loss.detach())


def _zeroing(mask: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.mul_(mask)
