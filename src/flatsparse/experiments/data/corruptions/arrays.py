"""The helpers that several corruptions share. Images are float64 (N, H, W, C) in 0 … 1, with C = 1 or 3."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Source = np.random.Generator
Corruption = Callable[[Array, tuple[float, ...], Sequence[Source]], Array]  # images, strength, a source for each image

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


def drawn(sources: Sequence[Source], draw: Callable[[Source], Any]) -> Array:
    """Return a draw from each source, stacked."""
    return np.stack([np.asarray(draw(source)) for source in sources])


def floored(values: Array) -> Array:
    """Return levels 0 … 255 of values 0 … 1, rounded down as in the published files.

    A millionth is added, so that a value's last bits, which differ between processors, do not decide.
    """
    return np.floor(values.clip(0, 1) * 255 + 1e-6).astype(np.uint8)


def luminance(images: Array) -> Array:
    """Return the grey version (…, 1) of images (…, C)."""
    return images if images.shape[-1] == 1 else (images @ LUMA)[..., None]


def as_channels(colors: Array, channels: int) -> Array:
    """Return RGB colors (…, 3), made grey where images have one channel."""
    return colors if channels == 3 else luminance(colors)


def smoothed(images: Array, sigma: float, *, edge: str = "nearest", reach: float = 4.0) -> Array:
    """Return images (N, H, W, …) filtered by a Gaussian of ``sigma`` pixels, cut off at ``reach`` sigma."""
    from scipy import ndimage

    if sigma == 0:
        return images
    for axis in (1, 2):
        images = ndimage.gaussian_filter1d(images, sigma, axis, mode=edge, truncate=reach)
    return images


def zoomed(images: Array, factor: float) -> Array:
    """Return images (N, H, W, C) enlarged about their middle by a factor, linearly interpolated.

    Along each axis, the middle ``ceil(side / factor)`` pixels are stretched to ``round(that · factor)`` with the first and
    last on each other, of which the middle ``side`` remain.
    """
    for axis in (1, 2):
        side = images.shape[axis]
        part = int(np.ceil(side / factor))
        long = round(part * factor)
        place = (np.arange(side) + (long - side) // 2) * (part - 1) / max(long - 1, 1)
        left = np.minimum(place.astype(int), max(part - 2, 0))
        weight = (place - left).reshape((side, *[1] * (3 - axis)))
        start = (side - part) // 2
        before = images.take(start + left, axis)
        images = before + weight * (images.take(start + np.minimum(left + 1, part - 1), axis) - before)
    return images
