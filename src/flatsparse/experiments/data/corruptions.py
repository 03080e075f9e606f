"""Corruptions of test images: noise, blur and bad light, which no net was trained on.

The idea is that of Hendrycks & Dietterich ("Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019): kinds of corruption, five severities each, accuracy averaged over all. The corruptions and
their strengths here are ours, for images of any size; they are not the published files of ImageNet-C or CIFAR-10-C, and
figures from the two must not be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from flatsparse.common.errors import InputError, unknown
from flatsparse.common.seeds import generator

SEVERITIES = range(1, 6)
PIECE = 500  # images at once; noise follows it, so it is fixed

Corruption = Callable[[Tensor, int, torch.Generator], Tensor]  # (N, C, H, W) in 0 … 1, severity, source of chance


def gaussian_noise(images: Tensor, severity: int, source: torch.Generator) -> Tensor:
    """Add normal noise to each value."""
    return images + (0.04, 0.08, 0.12, 0.18, 0.26)[severity - 1] * torch.randn(images.shape, generator=source)


def shot_noise(images: Tensor, severity: int, source: torch.Generator) -> Tensor:
    """Make each value a Poisson count, as of few photons."""
    photons = (120, 60, 25, 12, 5)[severity - 1]
    return torch.poisson(images * photons, generator=source) / photons


def impulse_noise(images: Tensor, severity: int, source: torch.Generator) -> Tensor:
    """Set a share of the values to 0 or 1 (salt and pepper)."""
    share = (0.01, 0.03, 0.06, 0.12, 0.2)[severity - 1]
    chance = torch.rand(images.shape, generator=source)
    return torch.where(chance < share, (chance < share / 2).float(), images)


def blur(images: Tensor, severity: int, source: torch.Generator) -> Tensor:
    """Filter by a Gaussian; its width is a share of the image's side."""
    width = (
        0.3 + images.shape[-1] * (0.01, 0.02, 0.03, 0.045, 0.06)[severity - 1]
    )  # below 0.3 it would not reach the adjacent pixels
    bell = torch.exp(-0.5 * (_offsets(math.ceil(3 * width)) / width) ** 2)
    return _filtered(_filtered(images, bell, -1), bell, -2)


def motion_blur(images: Tensor, severity: int, source: torch.Generator) -> Tensor:
    """Average along the row, as a camera does that moves sideways; the length is a share of the image's side."""
    reach = images.shape[-1] * (0.03, 0.05, 0.08, 0.12, 0.16)[severity - 1]
    return _filtered(images, (1 + reach - _offsets(math.ceil(reach)).abs()).clamp(0, 1), -1)


def contrast(images: Tensor, severity: int, source: torch.Generator) -> Tensor:
    """Move values toward each image's mean."""
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) * (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]


def brightness(images: Tensor, severity: int, source: torch.Generator) -> Tensor:
    """Raise every value."""
    return images + (0.05, 0.1, 0.2, 0.3, 0.4)[severity - 1]


def pixelate(images: Tensor, severity: int, source: torch.Generator) -> Tensor:
    """Average over blocks: shrink and enlarge again by area."""
    size = [max(1, round(side * (0.9, 0.6, 0.4, 0.3, 0.2)[severity - 1])) for side in images.shape[-2:]]
    return F.interpolate(F.interpolate(images, size, mode="area"), images.shape[-2:], mode="area")


CORRUPTIONS: dict[str, Corruption] = {
    kind.__name__: kind
    for kind in (gaussian_noise, shot_noise, impulse_noise, blur, motion_blur, contrast, brightness, pixelate)
}


def corrupt(images: Tensor, name: str, severity: int, seed: int = 0) -> Tensor:
    """Return corrupted copies of images.

    Args:
        images: uint8 (N, H, W, C), on any device; the work is done on the CPU, so that all devices see the same.
        name: one of ``CORRUPTIONS``.
        severity: 1 to 5.
        seed: of everything random.

    Returns: uint8 (N, H, W, C) on the images' device.
    Raises: InputError for an unknown corruption or severity.

    >>> grey = torch.full((1, 4, 4, 1), 100, dtype=torch.uint8)
    >>> int(corrupt(grey, "brightness", 3)[0, 0, 0, 0])
    151
    """
    if name not in CORRUPTIONS:
        raise unknown("corruption", name, CORRUPTIONS)
    if severity not in SEVERITIES:
        raise InputError(f"severity {severity} is not one of 1 to 5: give 1 for the mildest")
    source, done = generator(seed, "corruption", name, severity), []
    for piece in images.split(PIECE):
        values = CORRUPTIONS[name](piece.cpu().permute(0, 3, 1, 2).float() / 255, severity, source)
        done.append((255 * values.clamp(0, 1)).round().to(torch.uint8).permute(0, 2, 3, 1))
    return torch.cat(done).to(images.device)


def _offsets(reach: int) -> Tensor:
    return torch.arange(-reach, reach + 1, dtype=torch.float32)


def _filtered(images: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Return the weighted mean along an axis; beyond the edge the edge is repeated."""
    reach = len(weights) // 2
    weights = weights / weights.sum()
    moved = images.transpose(axis, -1)
    columns = (torch.arange(moved.shape[-1])[:, None] + torch.arange(-reach, reach + 1)).clamp(0, moved.shape[-1] - 1)
    return (moved[..., columns] @ weights).transpose(axis, -1)
