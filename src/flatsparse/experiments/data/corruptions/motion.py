"""Motion blur as ImageMagick makes it, with which the published files were made."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from flatsparse.experiments.data.corruptions.arrays import Array, floored


def moved(images: Array, radius: float, sigma: float, angles: Sequence[float]) -> Array:
    """Return each image (N, H, W, C) averaged along a line, with weights that fall off as half a Gaussian.

    Levels are rounded down to 256, as in the file that ImageMagick writes. Beyond the edge the edge is repeated.

    Args:
        images: in 0 … 1.
        radius: pixels; the line has ``2 radius + 1``.
        sigma: pixels, of the Gaussian.
        angles: degrees, one for each image.
    """
    width = 2 * math.ceil(radius) + 1
    weights = np.exp(-(np.arange(width) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    edged = np.pad(images, ((0, 0), (width, width), (width, width), (0, 0)), mode="edge")
    averaged = np.zeros_like(images)
    for total, image, angle in zip(averaged, edged, angles, strict=True):
        down, right = math.sin(math.radians(angle)), math.cos(math.radians(angle))
        for step, weight in enumerate(weights):
            top = width + math.ceil(step * down - 0.5)
            left = width + math.ceil(step * right - 0.5)
            total += weight * image[top : top + images.shape[1], left : left + images.shape[2]]
    return floored(averaged) / 255
