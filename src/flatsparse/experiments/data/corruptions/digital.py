"""Corruptions by processing: contrast, saturation, elastic deformation, coarse pixels and JPEG."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from flatsparse.experiments.data.corruptions.arrays import Array, Source, floored, smoothed

if TYPE_CHECKING:
    from PIL import Image


def contrast(images: Array, strength: tuple[float, ...], sources: Sequence[Source]) -> Array:
    """Move values toward each channel's mean."""
    (share,) = strength
    mean = images.mean((1, 2), keepdims=True)
    return (images - mean) * share + mean


def saturate(images: Array, strength: tuple[float, ...], sources: Sequence[Source]) -> Array:
    """Multiply the saturation of the HSV model and add to it; grey pixels of color images become red, as hue 0 is.

    Images of one channel have no saturation and stay as they are.
    """
    if images.shape[-1] == 1:
        return images
    factor, rise = strength
    value = images.max(-1, keepdims=True)
    below = value - images  # value · saturation, in the channels that are lowest
    depth = below.max(-1, keepdims=True)
    saturation = depth / np.maximum(value, 1e-12)
    wanted = value * (saturation * factor + rise).clip(0, 1)
    return value - np.where(depth > 0, below * wanted / np.maximum(depth, 1e-12), wanted * np.array([0.0, 1.0, 1.0]))


def pixelate(images: Array, strength: tuple[float, ...], sources: Sequence[Source]) -> Array:
    """Shrink and enlarge again by averaging over the area."""
    from PIL import Image

    (share,) = strength
    height, width = images.shape[1:3]
    size = (max(1, int(width * share)), max(1, int(height * share)))
    return _edited(
        images,
        lambda image: image.resize(size, Image.Resampling.BOX).resize((width, height), Image.Resampling.BOX),
    )


def jpeg_compression(images: Array, strength: tuple[float, ...], sources: Sequence[Source]) -> Array:
    """Write as JPEG of a quality and read back."""
    from PIL import Image

    def written(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(strength[0]))
        return Image.open(file)

    return _edited(images, written)


def elastic_transform(images: Array, strength: tuple[float, ...], sources: Sequence[Source]) -> Array:
    """Move three points at random and all others with them, and then each pixel by smoothed noise."""
    height, width = images.shape[1:3]
    side = min(height, width)
    amount, sigma, shift = (share * side for share in strength)
    return np.stack(
        [
            _warped(_affine(image, shift, source), amount, sigma, source)
            for image, source in zip(images, sources, strict=True)
        ]
    )


def _edited(images: Array, edit: Callable[[Image.Image], Image.Image]) -> Array:
    """Return images (N, H, W, C) that an edit of Pillow's has changed, each of 256 levels."""
    from PIL import Image

    pixels = floored(images)
    grey = pixels.shape[-1] == 1
    edited = [np.asarray(edit(Image.fromarray(image[..., 0] if grey else image))) for image in pixels]
    return np.stack(edited).reshape(images.shape) / 255


def _affine(image: Array, shift: float, source: Source) -> Array:
    """Return an image (H, W, C) moved as three points are that are each moved by up to ``shift`` pixels."""
    height, width = image.shape[:2]
    reach = min(height, width) // 3
    middle = np.array([width // 2, height // 2])
    before = middle + reach * np.array([[1, 1], [1, -1], [-1, -1]])
    after = before + source.uniform(-shift, shift, size=(3, 2))
    matrix = np.linalg.solve(np.column_stack([after, np.ones(3)]), before)  # from a point after to the one before
    down, right = np.indices((height, width), dtype=float)
    return _sampled(
        image,
        right * matrix[0, 1] + down * matrix[1, 1] + matrix[2, 1],
        right * matrix[0, 0] + down * matrix[1, 0] + matrix[2, 0],
        "mirror",
    )


def _warped(image: Array, amount: float, sigma: float, source: Source) -> Array:
    """Return an image (H, W, C) whose pixels are moved by smoothed noise times ``amount``."""
    height, width = image.shape[:2]
    right, down = (
        amount * smoothed(source.uniform(-1, 1, size=(height, width))[None], sigma, edge="reflect", reach=3)[0]
        for _ in range(2)
    )
    rows, columns = np.indices((height, width))
    return _sampled(image, rows + down, columns + right, "reflect")


def _sampled(image: Array, rows: Array, columns: Array, edge: str) -> Array:
    """Return an image (H, W, C) at other places, linearly interpolated."""
    from scipy import ndimage

    return np.stack(
        [
            ndimage.map_coordinates(image[..., channel], (rows, columns), order=1, mode=edge)
            for channel in range(image.shape[-1])
        ],
        -1,
    )
