"""The directions of the study of free directions, and published rivals by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flatsparse.common.seeds import generator

Tensors = dict[nn.Parameter, Tensor]
Direction = Callable[[Any, Tensors], Tensors]


class Average:
    """A running average of the gradients, ``d ← β d + (1 − β) g``; with a factor of −1, down it."""

    def __init__(self, decay: float, factor: float = 1.0) -> None:
        self.decay, self.factor, self.kept = decay, factor, {}  # type: ignore[var-annotated]

    def __call__(self, optimizer: Any, gradients: Tensors) -> Tensors:
        self.kept = {
            p: self.kept[p].lerp(g, 1 - self.decay) if p in self.kept else g.clone() for p, g in gradients.items()
        }
        return {p: self.factor * d for p, d in self.kept.items()}


class Extrapolated:
    """The gradient that a straight line through the last two leads to, ``2 g_t − g_{t−1}``."""

    def __init__(self) -> None:
        self.last: Tensors = {}

    def __call__(self, optimizer: Any, gradients: Tensors) -> Tensors:
        told = {p: 2 * g - self.last.get(p, g) for p, g in gradients.items()}
        self.last = {p: g.clone() for p, g in gradients.items()}
        return told


class Noise:
    """Gaussian noise wherever the gradient is not zero, so on active weights."""

    def __init__(self) -> None:
        self.source = generator("noise")

    def __call__(self, optimizer: Any, gradients: Tensors) -> Tensors:
        return {p: torch.randn(g.shape, generator=self.source).to(g) * (g != 0) for p, g in gradients.items()}


def each(form: Callable[[Tensor, Tensor], Tensor]) -> Direction:
    """The previous gradient, changed weight by weight or layer by layer: a function of weight and gradient."""
    return lambda optimizer, gradients: {p: form(p.detach(), g) for p, g in gradients.items()}


# By name: how to make one, with the buffers the size of the weights that it needs, and what it is.
DIRECTIONS: dict[str, tuple[Callable[[], Direction], int, str]] = {
    "previous": (lambda: each(lambda w, g: g), 1, "the previous gradient: S²-SAM"),
    "average 0.5": (lambda: Average(0.5), 2, "a running average, β = 0.5"),
    "average 0.9": (lambda: Average(0.9), 2, "a running average, β = 0.9; up the momentum, but for decay"),
    "average 0.97": (lambda: Average(0.97), 2, "a running average, β = 0.97"),
    "down 0.9": (lambda: Average(0.9, -1.0), 2, "down that of β = 0.9, where MSAM perturbs (Becker et al. 2024)"),
    "extrapolated": (Extrapolated, 2, "2 g_t − g_{t−1}"),
    "sign": (lambda: each(lambda w, g: g.sign()), 1, "the signs of the previous gradient"),
    "equal layers": (
        lambda: each(lambda w, g: g / (g.norm() + 1e-12)),
        1,
        "the previous gradient, every tensor at the same length",
    ),
    "weighted layers": (
        lambda: each(lambda w, g: g * w.norm() / (g.norm() + 1e-12)),
        1,
        "the previous gradient, every tensor at its weights' length",
    ),
    "by weight": (lambda: each(lambda w, g: g * w.square()), 1, "the previous gradient times w², as ASAM scales"),
    "random": (Noise, 1, "noise: the control"),
}
FRESH = "the gradient of another batch, at SAM's price"
# Published rivals by name: the gradients that they cost a step, and what they go along.
STALE_SHARE = 0.25
RIVALS: dict[str, tuple[float, str]] = {
    "sam": (2.0, "the coming batch's own gradient: SAM"),
    "previous": (1.0, "the previous gradient: S²-SAM"),
    "less average": (1.0, "it less a running average, F-SAM's part (Li et al. 2024)"),
    "mask": (1.0, "masks' own gradient, as far as it goes along weights, after C-SAM (He & Chen 2026)"),
    "stale": (
        1.0 + STALE_SHARE,
        "the gradient, one step old, of a quarter of the last batch: AsyncSAM (Jo et al. 2025)",
    ),
}
