"""Corrupted copies of images: the table of corruptions, and the function that applies one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from flatsparse.common.errors import InputError, unknown
from flatsparse.common.seeds import derive
from flatsparse.experiments.data.corruptions import blur, digital, frost, noise, spatter, weather
from flatsparse.experiments.data.corruptions.arrays import Corruption, floored
from flatsparse.experiments.data.corruptions.names import SEVERITIES
from flatsparse.experiments.data.corruptions.strengths import strength

PIECE = 2**21  # values of images at once, for memory

CORRUPTIONS: dict[str, Corruption] = {
    kind.__name__: kind
    for kind in (
        *(noise.gaussian_noise, noise.shot_noise, noise.impulse_noise),
        *(blur.defocus_blur, blur.glass_blur, blur.motion_blur, blur.zoom_blur),
        *(weather.snow, frost.frost, weather.fog, weather.brightness),
        *(digital.contrast, digital.elastic_transform, digital.pixelate, digital.jpeg_compression),
        *(noise.speckle_noise, blur.gaussian_blur, spatter.spatter, digital.saturate),
    )
}


def corrupt(images: Tensor, name: str, severity: int, seed: int = 0, *, first: int = 0) -> Tensor:
    """Return corrupted copies of images, as Hendrycks & Dietterich (ICLR 2019) corrupt them.

    Functions and strengths are those of the scripts that made CIFAR-10-C, ImageNet-64×64-C and ImageNet-C; an image of
    another size gets the strengths of the nearest of the three. Two things differ: ice is drawn (see ``frost``), and images
    of ImageNet-C are not written as JPEG of quality 85 afterwards. Each image's chance follows the seed, the corruption,
    the severity and the image's index, so that it does not depend on which images come with it.

    Args:
        images: uint8 (N, H, W, C) with C = 1 or 3, on any device; the work is done on the CPU, so that all devices see the
            same.
        name: one of ``CORRUPTIONS``.
        severity: 1 to 5.
        seed: of everything random.
        first: the index of the first image, where they are a part of more.

    Returns: uint8 (N, H, W, C) on the images' device.
    Raises: InputError for an unknown corruption or severity, and for what is not images.

    >>> grey = torch.full((1, 32, 32, 1), 100, dtype=torch.uint8)
    >>> int(corrupt(grey, "brightness", 3)[0, 0, 0, 0])  # 0.15 more
    138
    """
    if name not in CORRUPTIONS:
        raise unknown("corruption", name, CORRUPTIONS)
    if severity not in SEVERITIES:
        raise InputError(f"severity {severity} is not one of 1 to 5: give 1 for the mildest")
    if images.ndim != 4 or images.dtype != torch.uint8 or images.shape[-1] not in (1, 3) or 0 in images.shape[1:]:
        raise InputError(
            f"images to corrupt are {images.dtype} {tuple(images.shape)}, wanted uint8 (N, H, W, C) with C = 1 or 3"
        )
    if len(images) == 0:
        return images.clone()
    chosen = strength(name, severity, *images.shape[1:3])
    size = max(1, PIECE // images[0].numel())
    done, index = [], first
    for piece in images.split(size):
        sources = [
            np.random.default_rng(derive(seed, "corruption", name, severity, index + place))
            for place in range(len(piece))
        ]
        index += len(piece)
        done.append(torch.from_numpy(floored(CORRUPTIONS[name](piece.cpu().numpy() / 255, chosen, sources))))
    return torch.cat(done).to(images.device)
