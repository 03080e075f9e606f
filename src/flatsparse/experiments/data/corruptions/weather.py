"""Corruptions by weather: snow, fog and brightness; frost and spatter have files of their own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flatsparse.experiments.data.corruptions.arrays import Array, Source, drawn, floored, luminance, zoomed
from flatsparse.experiments.data.corruptions.motion import moved


def brightness(images: Array, strength: tuple[float, ...], sources: Sequence[Source]) -> Array:
    """Raise the value of the HSV model, by which all channels grow in proportion."""
    (rise,) = strength
    value = images.max(-1, keepdims=True)
    raised = np.minimum(value + rise, 1)
    return np.where(value > 0, images * raised / np.maximum(value, 1e-12), raised)


def snow(images: Array, strength: tuple[float, ...], sources: Sequence[Source]) -> Array:
    """Whiten, and add flakes that fall in streaks: enlarged noise above a threshold, blurred by motion, and turned by 180°."""
    mean, deviation, zoom, threshold, radius, sigma, kept = strength
    height, width = images.shape[1:3]
    flakes, angles = [], []
    for source in sources:
        flakes.append(source.normal(size=(height, width), loc=mean, scale=deviation))
        angles.append(float(source.uniform(-135, -45)))
    layer = zoomed(np.stack(flakes)[..., None], zoom)
    layer[layer < threshold] = 0
    layer = moved(floored(layer) / 255, radius, sigma, angles)
    white = np.maximum(images, luminance(images) * 1.5 + 0.5)
    return kept * images + (1 - kept) * white + layer + layer[:, ::-1, ::-1]


def fog(images: Array, strength: tuple[float, ...], sources: Sequence[Source]) -> Array:
    """Add a cloud that is drawn by the diamond-square algorithm, and darken to the brightest value that was there."""
    amount, decay = strength
    height, width = images.shape[1:3]
    side = 1 << (max(height, width) - 1).bit_length()
    brightest = images.max((1, 2, 3), keepdims=True)
    cloud = _plasma(side, decay, sources)[:, :height, :width, None]
    return (images + amount * cloud) * brightest / (brightest + amount)


def _plasma(side: int, decay: float, sources: Sequence[Source]) -> Array:
    """Return height maps (N, side, side) in 0 … 1, which join themselves at the edges; the side is a power of two."""
    heights = np.zeros((len(sources), side, side))
    roughness, step = 100.0, side

    def placed(sums: Array) -> Array:
        return sums / 4 + roughness * drawn(
            sources, lambda source: source.uniform(-roughness, roughness, size=sums.shape[1:])
        )

    def both(grid: Array, by: int, axis: int) -> Array:
        return grid + np.roll(grid, by, axis)

    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step]
        heights[:, half::step, half::step] = placed(both(both(corners, -1, 1), -1, 2))
        centers = heights[:, half::step, half::step]
        heights[:, ::step, half::step] = placed(both(centers, 1, 1) + both(corners, -1, 2))
        heights[:, half::step, ::step] = placed(both(centers, 1, 2) + both(corners, -1, 1))
        roughness, step = roughness / decay, half
    heights -= heights.min((1, 2), keepdims=True)
    return heights / np.maximum(heights.max((1, 2), keepdims=True), 1e-12)
