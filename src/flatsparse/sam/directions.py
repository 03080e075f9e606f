"""The directions that S²-SAM can perturb along. To add one, write a function here and enter it in ``DIRECTIONS``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatsparse.common.distributed import distribute
from flatsparse.common.errors import InputError, unknown
from flatsparse.common.seeds import generator
from flatsparse.common.tensors import averageable
from flatsparse.sam.radius import STEP

AVERAGE = 0.9  # how much of the running average stays at a step
Tensors = dict[nn.Parameter, Tensor]


class Directed(Protocol):
    """The part of an ``S2SAM`` that a direction may read."""

    base: Optimizer
    seed: int
    param_groups: list[dict[str, Any]]

    @property
    def state(self) -> Any:
        """The state of the base by parameter, in which a direction may keep its own."""
        ...


def previous_gradient(optimizer: Directed, gradients: Tensors) -> Tensors:
    """The gradient just used (Ji et al. 2024, eq. 5-7)."""
    return gradients


def momentum(optimizer: Directed, gradients: Tensors) -> Tensors:
    """The base's momentum, as far as it has one (MSAM: Becker et al., arXiv 2401.12033, whose code goes down it).

    The base's ``momentum_buffer`` (SGD) or ``exp_avg`` (Adam and kin); SGD's contains the weight decay. The published MSAM
    applies the decay at the perturbed point; here it acts at w.
    """
    entries = {p: optimizer.state.get(p, {}) for p in gradients}
    momenta = {p: entry.get("momentum_buffer", entry.get("exp_avg")) for p, entry in entries.items()}
    momenta = {p: m for p, m in momenta.items() if m is not None}  # a first gradient may have come on a step of a rule
    if not momenta and not any(group.get("momentum") or "betas" in group for group in optimizer.param_groups):
        raise InputError(
            f"direction 'momentum' needs a base with a momentum buffer, and {type(optimizer.base).__name__} has none: give"
            " SGD momentum=0.9, or use direction='average'"
        )
    return momenta


def average(optimizer: Directed, gradients: Tensors) -> Tensors:
    """A running average of past gradients, ``d ← β d + (1 − β) g`` (VaSSO: Li & Giannakis 2023; β = 0.9 is ours).

    Entries of a gradient that are not finite count as 0. Costs another parameter-sized buffer, which it keeps in the
    optimizer's state.
    """
    return {p: _averaged(optimizer.state[p], g) for p, g in gradients.items()}


def less_average(optimizer: Directed, gradients: Tensors) -> Tensors:
    """What is the last batch's own in its gradient: ``d = g − m``, then ``m ← β m + (1 − β) g`` (F-SAM's part).

    Li et al., "Friendly Sharpness-Aware Minimization", CVPR 2024: a running average m stands for the gradient of
    all samples, and what is left is noise of the batch, along which they perturb with the same batch's gradient, at SAM's
    price. Here g is the previous step's, so that it is free; the first is taken whole, as in their code. Their σ is 1, and
    β = 0.9 the default of their code; 0.6 to 0.95 are used in their runs.

    Costs another parameter-sized buffer, which it keeps in the optimizer's state.
    """
    parts = {}
    for p, g in gradients.items():
        entry = optimizer.state[p]
        parts[p] = g - entry["average"] if "average" in entry else g
        _averaged(entry, g)
    return parts


def _averaged(entry: dict[str, Any], gradient: Tensor) -> Tensor:
    """Return the running average in a parameter's state, with a gradient taken in but for entries that are not finite."""
    finite = averageable(gradient)
    entry["average"] = entry["average"].lerp_(finite, 1 - AVERAGE) if "average" in entry else finite
    return cast("Tensor", entry["average"])


def mask_gradient(optimizer: Directed, gradients: Tensors) -> Tensors:
    """The way that weights go when their masks are perturbed along the masks' own gradient (after C-SAM), ``d = w² g``.

    He & Chen, "Towards Compact and Robust DNNs via Compression-aware Sharpness Minimization", arXiv 2601.20301, perturb
    pruning masks in place of weights; of the paper we could read only the abstract and summaries, so the form is ours. Active
    weights are ``m w`` with m = 1. ``∂L/∂m = w g``, so masks move by ``δ = ρ_m w g/‖w g‖`` and weights by ``w δ``, which is
    along w² g. The previous gradient stands for g. Only parameters of two or more dimensions have masks, so biases and norms
    stay.

    ρ is the length of what the weights move, ‖w δ‖, as for every direction. With ``adaptive=True, eta=0`` along the
    previous gradient it would be ρ_m = ‖δ‖, on all parameters: mask perturbation is ASAM without η.

    Raises: InputError for an optimizer that holds vectors only, which have no masks.
    """
    found = {p: p.detach().square() * g for p, g in gradients.items() if p.ndim > 1}
    if gradients and not found and not any(p.ndim > 1 for group in optimizer.param_groups for p in group["params"]):
        raise InputError(
            "direction 'mask' perturbs the masks of matrices and kernels, and the optimizer holds none: give it the model's"
            " weights too, or use direction='previous'"
        )
    return found


def random_direction(optimizer: Directed, gradients: Tensors) -> Tensors:
    """Gaussian noise (ours: the control that a claim for any other direction needs)."""
    source = generator(optimizer.seed, "direction", optimizer.param_groups[0][STEP])
    return {
        p: distribute(torch.randn(g.shape, generator=source).to(g.device, g.dtype), like=g)
        for p, g in gradients.items()
    }


@dataclass(frozen=True)
class Direction:
    """A direction of S²-SAM.

    Attributes:
        find: gives a direction for each parameter, of its shape, from the optimizer and the gradients just used.
        summary: one line for help texts.
        downhill: whether the loss falls along it, so that the perturbation goes the other way.
        within_masks: whether it is zero outside the masks by itself, because gradients and state are.
    """

    find: Callable[[Any, Tensors], Tensors]
    summary: str = ""
    downhill: bool = False
    within_masks: bool = False


DIRECTIONS = {
    "previous": Direction(
        previous_gradient, "along the previous step's gradient; one gradient a step (Ji et al. 2024)", within_masks=True
    ),
    "random": Direction(random_direction, "along noise, one gradient a step: the control"),
    "momentum": Direction(
        momentum, "down the momentum, one gradient a step (Becker et al. 2024)", downhill=True, within_masks=True
    ),
    "average": Direction(
        average,
        "along a running average of past gradients, one gradient a step (after Li & Giannakis 2023)",
        within_masks=True,
    ),
    "less_average": Direction(
        less_average,
        "along the previous gradient less a running average, one gradient a step (after Li et al. 2024)",
        within_masks=True,
    ),
    "mask": Direction(
        mask_gradient,
        "along the gradient of multiplicative masks, one gradient a step (after He & Chen 2026)",
        within_masks=True,
    ),
}


def direction_of(choice: str | Callable[[Any, Tensors], Tensors] | Direction) -> Direction:
    """Return the direction of a name in ``DIRECTIONS`` or of a function, which may have an attribute ``downhill``."""
    if isinstance(choice, Direction):
        return choice
    if not isinstance(choice, str):
        for known in DIRECTIONS.values():
            if known.find is choice:
                return known
        return Direction(choice, downhill=getattr(choice, "downhill", False))
    if choice not in DIRECTIONS:
        raise unknown("direction", choice, DIRECTIONS)
    return DIRECTIONS[choice]
