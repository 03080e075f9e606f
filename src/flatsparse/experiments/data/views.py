"""Views of images of any size: squares of one size, cropped at random for training and in the middle for evaluation."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flatsparse.common.errors import InputError, check_count
from flatsparse.common.seeds import derive

if TYPE_CHECKING:
    from PIL import Image

AREA = (0.08, 1.0)  # of a random crop, as a share of the image
ASPECT = (3 / 4, 4 / 3)  # width by height
LEAST, RANGE = math.log(ASPECT[0]), math.log(ASPECT[1] / ASPECT[0])  # of its logarithm
TRIES = 10

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class View:
    """The squares that images become.

    Attributes:
        size: the side of a square, in pixels.
        resize: the shorter side of an image for evaluation, before its middle is cut out; by default 256 for each 224 of
            ``size``, rounded.

    Raises: InputError for a size that is not a number of pixels, and for a shorter side of less than it.
    """

    size: int = 224
    resize: int | None = None

    def __post_init__(self) -> None:
        check_count("--image-size", self.size)
        if self.resize is not None and check_count("--resize", self.resize) < self.size:
            raise InputError(
                f"--resize {self.resize} is less than --image-size {self.size}: the middle is cut out of it"
            )

    @property
    def shorter_side(self) -> int:
        """The shorter side of an image for evaluation."""
        return round(self.size * 256 / 224) if self.resize is None else self.resize


def training_view(image: Image.Image, view: View, *path: int) -> np.ndarray:
    """Return a random crop of an image, resized, and flipped in half of the cases: uint8 (size, size, 3).

    Bilinear, over all pixels of the crop. JPEG files are not decoded at a smaller scale (``draft``), which would save 40 % of
    the time where a crop has twice the view's side, and change its pixels by several levels.

    Args:
        image: of mode L or RGB.
        view: its size.
        path: what the random numbers follow, such as (seed, epoch, row).
    """
    source = random.Random(derive("view", *path))
    box = random_box(*image.size, source)
    return _resized(image, view.size, box, flipped=source.random() < 0.5)


def evaluation_view(image: Image.Image, view: View) -> np.ndarray:
    """Return the middle of an image whose shorter side is resized to the view's: uint8 (size, size, 3).

    Both are one step, so that only the middle is computed.
    """
    return _resized(image, view.size, middle_box(*image.size, view), flipped=False)


def random_box(width: int, height: int, source: random.Random) -> Box:
    """Return a crop of an image at random (Szegedy et al. 2015, "Going Deeper with Convolutions", section 6).

    Its area is 8 to 100 % of the image's, uniform; its aspect 3/4 to 4/3, uniform in the logarithm; its place uniform. After
    ten that do not fit it is the largest in the middle whose aspect is allowed.
    """
    for _ in range(TRIES):
        area = width * height * (AREA[0] + (AREA[1] - AREA[0]) * source.random())
        aspect = math.exp(LEAST + RANGE * source.random())
        across, down = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < across <= width and 0 < down <= height:
            left, top = int((width - across + 1) * source.random()), int((height - down + 1) * source.random())
            return left, top, left + across, top + down
    across, down = min(width, round(height * ASPECT[1])), min(height, round(width / ASPECT[0]))
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down


def middle_box(width: int, height: int, view: View) -> Box:
    """Return the part of an image that the middle of the resized one is of.

    >>> middle_box(512, 256, View(224))
    (144.0, 16.0, 368.0, 240.0)
    """
    shorter = view.shorter_side
    resized = [shorter * side // min(width, height) for side in (width, height)]
    corner = [round((side - view.size) / 2) for side in resized]
    scale = [side / of for side, of in zip((width, height), resized, strict=True)]
    left, top = corner[0] * scale[0], corner[1] * scale[1]
    return (
        left,
        top,
        min(width, left + view.size * scale[0]),
        min(height, top + view.size * scale[1]),
    )  # despite rounding


def _resized(image: Image.Image, size: int, box: Box, *, flipped: bool) -> np.ndarray:
    from PIL import Image

    image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    if flipped:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
