"""Scores of single weights: what a rule keeps, or grows, first. Larger is first."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from flatsparse.masks import MaskedWeight, Masks

Score = Callable[[MaskedWeight], Tensor]  # of the weight's shape
Saliency = Callable[[Masks, nn.Module], dict[str, Tensor]]  # of the whole net: a score tensor for each layer's name


def needs_dense_gradient(score: object) -> bool:
    """Whether a score reads ``MaskedWeight.grad``; then the step is paid for, and kept, dense."""
    return bool(getattr(score, "dense_gradient", False))


def _reads_dense_gradient(score: Score) -> Score:
    score.dense_gradient = True  # type: ignore[attr-defined]  # a function may say what it needs
    return score


def magnitude(w: MaskedWeight) -> Tensor:
    """``|w|`` (Han et al. 2015)."""
    return w.weight.detach().abs()


@_reads_dense_gradient
def gradient(w: MaskedWeight) -> Tensor:
    """``|∂L/∂w|``, of live and masked weights alike (RigL: Evci et al. 2020, sec. 3)."""
    return w.grad.abs()


def random(w: MaskedWeight) -> Tensor:
    """Uniform noise from the layer's own source, so that every process draws the same (SET: Mocanu et al. 2018)."""
    return torch.rand(w.weight.shape, generator=w.generator).to(w.weight.device)


def each(score: Score) -> Saliency:
    """A saliency that scores every layer by itself."""

    def saliency(masks: Masks, model: nn.Module) -> dict[str, Tensor]:
        return {w.name: score(w) for w in masks}

    return saliency
