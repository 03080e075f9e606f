"""Corruptions by noise: Gaussian, shot, impulse and speckle."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flatsparse.experiments.data.corruptions.arrays import Array, Source, drawn


def gaussian_noise(images: Array, strength: tuple[float, ...], sources: Sequence[Source]) -> Array:
    """Add normal noise, as of a sensor in low light."""
    (scale,) = strength
    return images + drawn(sources, lambda source: source.normal(size=images.shape[1:], scale=scale))


def shot_noise(images: Array, strength: tuple[float, ...], sources: Sequence[Source]) -> Array:
    """Make each value a Poisson count, as of few photons."""
    (photons,) = strength
    return np.stack([source.poisson(image * photons) / photons for source, image in zip(sources, images, strict=True)])


def impulse_noise(images: Array, strength: tuple[float, ...], sources: Sequence[Source]) -> Array:
    """Set a share of the values to 0 or 1: salt and pepper in color."""
    (share,) = strength
    flipped = drawn(sources, lambda source: source.uniform(size=images.shape[1:])) <= share
    salted = drawn(sources, lambda source: source.uniform(size=images.shape[1:])) <= 0.5
    return np.where(flipped, salted.astype(images.dtype), images)


def speckle_noise(images: Array, strength: tuple[float, ...], sources: Sequence[Source]) -> Array:
    """Add normal noise in proportion to the value."""
    (scale,) = strength
    return images + images * drawn(sources, lambda source: source.normal(size=images.shape[1:], scale=scale))
