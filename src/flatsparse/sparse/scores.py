"""Scores of single weights, by which a rule chooses those to keep or to grow. Larger is first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from flatsparse.common.errors import InputError
from flatsparse.sparse.masks import MaskedWeight, Masks

Score = Callable[[MaskedWeight], Tensor]  # of the weight's shape
Saliency = Callable[[Masks, nn.Module], dict[str, Tensor]]  # of the whole net: a score tensor for each layer's name


def needs_dense_gradient(score: object) -> bool:
    """True if a score reads ``MaskedWeight.grad``; then the gradient of the step is kept, and counted, dense."""
    return bool(getattr(score, "dense_gradient", False))


def _reads_dense_gradient(score: Score) -> Score:
    score.dense_gradient = True  # type: ignore[attr-defined]  # a function may say what it needs
    return score


def magnitude(w: MaskedWeight) -> Tensor:
    """``|w|`` (Han et al. 2015)."""
    return w.weight.detach().abs()


@_reads_dense_gradient
def gradient(w: MaskedWeight) -> Tensor:
    """``|∂L/∂w|``, of active and masked weights alike (RigL: Evci et al. 2020, sec. 3)."""
    return w.grad.abs_()  # it is a copy


@dataclass(frozen=True)
class MagnitudeAndGradient:
    """``|w| + λ|∂L/∂w|``, with the gradient that the last step was taken by (MEST: Yuan et al. 2021)."""

    weight: float
    dense_gradient: ClassVar[bool] = True

    def __call__(self, w: MaskedWeight) -> Tensor:
        return magnitude(w) + self.weight * w.grad.abs()


def magnitude_by_sign(w: MaskedWeight) -> Tensor:
    """The rank of ``|w|`` among the weights of its sign, as a share of them (SET: Mocanu et al. 2018, Alg. 1).

    Dropping the lowest drops the smallest positive and the largest negative weights in equal shares. Zeros rank lowest.
    """
    score = torch.zeros_like(w.weight, dtype=torch.float32, requires_grad=False)  # a rank outgrows bf16
    for side in (w.weight > 0, w.weight < 0):
        ranks = magnitude(w)[side].argsort(stable=True).argsort()
        score[side] = (ranks + 1).float() / max(1, len(ranks))
    return score


def momentum(w: MaskedWeight) -> Tensor:
    """``|running average of ∂L/∂w|``; the plan must keep one (sparse momentum: Dettmers & Zettlemoyer 2019)."""
    if w.momentum is None:
        raise InputError("growth by momentum needs a plan that keeps it: give Plan(momentum=0.9)")
    return w.momentum.abs()


def random(w: MaskedWeight) -> Tensor:
    """Uniform noise from the layer's own source, so that every process draws the same (SET: Mocanu et al. 2018)."""
    return torch.rand(w.weight.shape, generator=w.generator).to(w.weight.device)


def random_elsewhere(w: MaskedWeight) -> Tensor:
    """``random``, but weights active so far come last, so that just-dropped weights do not return."""
    return random(w) - w.mask.to(w.weight.dtype)


def each(score: Score) -> Saliency:
    """Return a saliency that scores every layer by itself."""

    def saliency(masks: Masks, model: nn.Module) -> dict[str, Tensor]:
        return {w.name: score(w) for w in masks}

    return saliency
