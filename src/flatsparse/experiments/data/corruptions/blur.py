"""Corruptions by blur: defocus, glass, motion, zoom and Gaussian."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flatsparse.experiments.data.corruptions.arrays import Array, Source, drawn, floored, smoothed, zoomed
from flatsparse.experiments.data.corruptions.motion import moved


def gaussian_blur(images: Array, strength: tuple[float, ...], sources: Sequence[Source]) -> Array:
    """Filter by a Gaussian."""
    (sigma,) = strength
    return smoothed(images, sigma)


def defocus_blur(images: Array, strength: tuple[float, ...], sources: Sequence[Source]) -> Array:
    """Average over a disk, as a lens does that is out of focus."""
    from scipy import ndimage

    radius, softness = strength
    kernel = _disk(radius, softness)
    return ndimage.correlate(images, kernel[None, :, :, None], mode="mirror")


def motion_blur(images: Array, strength: tuple[float, ...], sources: Sequence[Source]) -> Array:
    """Average along a line within 45° of the horizontal, as a camera does that moves."""
    radius, sigma = strength
    return moved(images, radius, sigma, drawn(sources, lambda source: source.uniform(-45, 45)).tolist())


def zoom_blur(images: Array, strength: tuple[float, ...], sources: Sequence[Source]) -> Array:
    """Average over enlargements about the middle, as a camera does that moves toward its subject."""
    stop, step = strength
    factors = np.arange(1, stop, step)
    return (images + sum(zoomed(images, factor) for factor in factors)) / (len(factors) + 1)


def glass_blur(images: Array, strength: tuple[float, ...], sources: Sequence[Source]) -> Array:
    """Give each pixel the color of one close by, in turn, as frosted glass does, and filter by a Gaussian before and after.

    The paper speaks of a shuffle, but the published script copies: its exchange of two views of one array overwrites the
    one before it is read. So do we, for the same images.
    """
    sigma, reach, rounds = strength[0], int(strength[1]), int(strength[2])
    height, width = images.shape[1:3]
    pixels = floored(smoothed(images, sigma))
    rows, columns = range(height - reach, reach, -1), range(width - reach, reach, -1)
    shifts = drawn(
        sources, lambda source: source.integers(-reach, reach, size=(rounds, len(rows), len(columns), 2))
    ).transpose(1, 2, 3, 4, 0)
    every = np.arange(len(images))
    for turn in shifts:
        for row, along in zip(rows, turn, strict=True):
            for column, (right, down) in zip(columns, along, strict=True):
                pixels[:, row, column] = pixels[every, row + down, column + right]
    return smoothed(pixels / 255, sigma)


def _disk(radius: float, softness: float) -> Array:
    """Return a disk's weights, smoothed by a Gaussian of ``softness`` pixels, without the zeros around them."""
    from scipy import ndimage

    reach = 8 if radius <= 8 else int(radius)
    taps = 1 if radius <= 8 else 2
    places = np.arange(-reach, reach + 1)
    disk = (places[:, None] ** 2 + places**2 <= radius**2).astype(float)
    disk /= disk.sum()
    bell = np.exp(-(np.arange(-taps, taps + 1) ** 2) / (2 * softness**2))
    bell /= bell.sum()
    for axis in (0, 1):
        disk = ndimage.correlate1d(disk, bell, axis, mode="mirror")
    used = np.flatnonzero(disk.any(1))
    return disk[used[0] : used[-1] + 1, used[0] : used[-1] + 1]
