"""Frost: crystals of ice on the image, drawn, for the published photographs of ice are not ours to give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flatsparse.experiments.data.corruptions.arrays import Array, Source, as_channels, drawn

# Of the published photographs, in levels 0 … 255: their average colors, and the range of what an image sees of one.
COLORS = np.array([[78, 149, 166], [201, 205, 214], [201, 205, 214], [138, 153, 166], [112, 123, 135]]) / 255
DEVIATION = (14, 36)
NEEDLES = 6  # directions in which crystals grow
THIN = 0.12  # the sine of the angle about a direction


def frost(images: Array, strength: tuple[float, ...], sources: Sequence[Source]) -> Array:
    """Darken and add ice."""
    kept, added = strength
    height, width, channels = images.shape[1:]
    ice = as_channels(_ice(height, width, sources), channels)
    return kept * images + added * ice


def _ice(height: int, width: int, sources: Sequence[Source]) -> Array:
    """Return pictures (N, H, W, 3) of ice in 0 … 1: noise whose power falls with the frequency, stronger along some lines.

    Ours. Average colors and contrast are about those of the published photographs, and at 224 pixels the correlations of pixels
    1 to 16 apart.
    """
    colors = COLORS[drawn(sources, lambda source: source.integers(len(COLORS)))]
    needles = drawn(sources, lambda source: source.uniform(0, np.pi, size=NEEDLES))
    deviation = drawn(sources, lambda source: source.uniform(*DEVIATION))[:, None, None] / 255
    noise = drawn(sources, lambda source: source.normal(size=(height, width)))
    down, right = np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width) * width
    frequency, direction = np.hypot(down, right), np.arctan2(down, right)
    gain = np.zeros((len(sources), *frequency.shape))
    for needle in needles.T:
        gain += np.exp(-((np.sin(direction - needle[:, None, None]) / THIN) ** 2))
    gain = (0.4 + gain) / np.maximum(frequency, 1) * (frequency > 0)
    grown = np.fft.irfft2(np.fft.rfft2(noise) * gain, (height, width))
    grown *= deviation / np.maximum(grown.std((1, 2), keepdims=True), 1e-12)
    return (colors[:, None, None] + grown[..., None]).clip(0, 1)
