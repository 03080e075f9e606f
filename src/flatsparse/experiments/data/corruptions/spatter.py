"""Spatter: drops of water, or splashes of mud, on the lens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flatsparse.experiments.data.corruptions.arrays import Array, Source, as_channels, drawn, smoothed

WATER = np.array([175, 238, 238]) / 255  # pale turquoise
MUD = np.array([63, 42, 20]) / 255
EDGE, CERTAIN_EDGE = 50, 150  # gradients, in levels, of the borders of drops (Canny's two thresholds)
FAR = 20  # pixels from a border, beyond which distance does not matter
RELIEF = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])  # light from one corner


def spatter(images: Array, strength: tuple[float, ...], sources: Sequence[Source]) -> Array:
    """Add water, shaded by the distance to the border of its drops, or cover with mud."""
    mean, deviation, sigma, threshold, last, is_mud = strength
    height, width, channels = images.shape[1:]
    liquid = smoothed(
        drawn(sources, lambda source: source.normal(size=(height, width), loc=mean, scale=deviation)), sigma
    )
    liquid[liquid < threshold] = 0
    if is_mud:
        cover = smoothed((liquid > threshold).astype(float), last)
        cover[cover < 0.8] = 0
        cover = cover[..., None]
        return images * (1 - cover) + as_channels(MUD, channels) * cover
    light = _shaded((255 * liquid.clip(0, 1)).astype(np.uint8))
    return images + last * light[..., None] * as_channels(WATER, channels)


def _shaded(liquid: Array) -> Array:
    """Return the light (N, H, W), at most 1, on drops of levels 0 … 255."""
    from scipy import ndimage

    edges = canny(liquid, EDGE, CERTAIN_EDGE)
    depth = (_mean_of_nine(np.minimum(distance(edges), FAR)) + 1e-6).astype(np.uint8)
    relief = np.stack([equalized(levels) for levels in depth]).astype(int)
    relief = ndimage.correlate(relief, RELIEF[None], mode="mirror").clip(0, 255)
    light = liquid * np.floor(_mean_of_nine(relief.astype(float)) + 0.5)
    return light / np.maximum(light.max((1, 2), keepdims=True), 1)


def canny(levels: Array, low: int, high: int) -> Array:
    """Return where the edges of images (N, H, W) of levels 0 … 255 are (Canny 1986).

    Sobel's gradients in the 1-norm; of these the greatest across the edge; those over ``low`` that touch one over ``high``.
    """
    from scipy import ndimage

    across, down = _sobel(levels, 2), _sobel(levels, 1)
    size = np.pad(abs(across) + abs(down), ((0, 0), (1, 1), (1, 1)))
    middle = size[:, 1:-1, 1:-1]

    def neighbor(rows: int, columns: int) -> Array:
        return size[:, 1 + rows : size.shape[1] - 1 + rows, 1 + columns : size.shape[2] - 1 + columns]

    flat, steep = np.tan(np.pi / 8) * abs(across), np.tan(3 * np.pi / 8) * abs(across)
    rising = (across < 0) == (down < 0)
    greatest = np.select(
        [abs(down) < flat, abs(down) > steep, rising],
        [
            (middle > neighbor(0, -1)) & (middle >= neighbor(0, 1)),
            (middle > neighbor(-1, 0)) & (middle >= neighbor(1, 0)),
            (middle > neighbor(-1, -1)) & (middle > neighbor(1, 1)),
        ],
        (middle > neighbor(-1, 1)) & (middle > neighbor(1, -1)),
    )
    touching = np.zeros((3, 3, 3))
    touching[1] = 1  # within an image
    groups, count = ndimage.label(greatest & (middle > low), touching)
    certain = np.zeros(count + 1, bool)
    certain[groups[greatest & (middle > high)]] = True
    certain[0] = False
    return certain[groups]


def distance(edges: Array) -> Array:
    """Return each pixel's distance (N, H, W) to the nearest edge, in steps along a row, a diagonal or a knight's move.

    The lengths 1, 1.4 and 2.1969 of the steps are those of Borgefors (1986) that OpenCV takes.
    """
    from scipy import ndimage

    size = edges.shape[1:]
    nearest = ndimage.distance_transform_edt(
        ~edges, (sum(size), 1, 1), return_distances=False, return_indices=True
    )  # so that no other image is nearer
    short, long = np.sort(abs(nearest - np.indices(edges.shape))[1:], 0)
    steps = np.where(
        long >= 2 * short,
        2.1969 * short + (long - 2 * short),
        2.1969 * (long - short) + 1.4 * (2 * short - long),
    )
    return np.where(edges.any((1, 2), keepdims=True), steps, np.inf)


def equalized(levels: Array) -> Array:
    """Return levels 0 … 255 spread so that each range of them is as frequent as another."""
    counts = np.bincount(levels.ravel(), minlength=256)
    lowest = int(np.flatnonzero(counts)[0])
    if counts[lowest] == levels.size:
        return levels
    above = np.cumsum(counts) - counts[lowest]
    return np.rint(above.clip(0) * (255 / (levels.size - counts[lowest]))).astype(np.uint8)[levels]


def _mean_of_nine(values: Array) -> Array:
    from scipy import ndimage

    return ndimage.uniform_filter(values, (1, 3, 3), mode="mirror")


def _sobel(levels: Array, axis: int) -> Array:
    from scipy import ndimage

    smooth = ndimage.correlate1d(levels.astype(int), [1, 2, 1], 3 - axis, mode="nearest")
    return ndimage.correlate1d(smooth, [-1, 0, 1], axis, mode="nearest")
