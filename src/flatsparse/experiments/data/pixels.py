"""Image files as pixels: the conversion of each kind of image, and the kinds that are refused."""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flatsparse.common.errors import InputError
from flatsparse.common.memory import free_memory

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")  # no others are opened
GREY = ("1", "L", "LA")
COLOUR = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
DEEP = ("I;16", "I;16L", "I;16B", "I;16N")
DARK = 2**13  # 16-bit levels that all lie below come from 13 bits or fewer


def gathered(files: Iterable[tuple[str, bytes]], count: int, name: str) -> tuple[Tensor, tuple[str, ...]]:
    """Return image files as one uint8 tensor (N, H, W, C), and remarks on them, a sentence each.

    Pixels are as a viewer shows them, on 256 levels, grey (C = 1) or red, green and blue (C = 3):

    - 1-bit, grey and grey with transparency: grey. Palettes, RGB, CMYK, YCbCr, HSV and LAB: RGB, as Pillow converts them.
    - 16-bit grey: ``round(level / 257)``, so that 65535 becomes 255; 16-bit colours lose their lower byte.
    - Transparent pixels are laid over white.
    - EXIF's orientation is heeded; colour profiles are not.

    Ours, because a bare conversion clips 16-bit levels to white, floats to black, and shows what transparency hides.

    Args:
        files: each image's name, for messages, and its content.
        count: the number of files.
        name: of all of them, for messages.

    Raises: InputError, with the image's name, for one that is damaged, of another size or kind than the first, of several
        frames, or of levels whose range its file does not say (32-bit whole numbers and floats).
    """
    stack: np.ndarray | None = None
    first, transparent, deepest = "", 0, 0
    for index, (file, content) in enumerate(files):
        image = decoded(content, file)
        pixels = image.pixels
        transparent, deepest = transparent + image.transparent, max(deepest, image.deepest)
        if stack is None:
            stack, first = _empty_stack(count, pixels, name), file
        if pixels.shape != stack.shape[1:]:
            shape, other = _shape(pixels), _shape(stack[0])
            raise InputError(
                f"{file} is {shape} and {first} is {other}: make all images of one size and kind, or give --image-size"
            )
        stack[index] = pixels
    assert stack is not None, "a part without images is refused before"
    notes = []
    if transparent:
        notes.append(f"transparent pixels of {transparent:,} images of '{name}' are laid over white")
    if 0 < deepest < DARK:
        notes.append(
            f"16-bit levels of '{name}' end at {deepest} of 65535, so that the images are dark: scale them to all 16 bits"
        )
    return torch.from_numpy(stack), tuple(notes)


@functools.cache
def suffixes() -> frozenset[str]:
    """Return the endings, in small letters, of files that are read as images."""
    from PIL import Image

    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS)


def brief(problem: Exception) -> str:
    """Return an error of another library as a line of at most 150 characters."""
    lines = str(problem).strip().splitlines()
    return (lines[0] if lines else type(problem).__name__)[:150]


@dataclass(frozen=True)
class Decoded:
    """One image of mode L or RGB, with a flag for transparent pixels, and its highest level if it has 16 bits."""

    image: Image.Image
    transparent: bool
    deepest: int = 0

    @property
    def pixels(self) -> np.ndarray:
        """The image as uint8 (H, W, 1 or 3)."""
        return as_pixels(self.image)


def as_pixels(image: Image.Image) -> np.ndarray:
    """Return an image of mode L or RGB as uint8 (H, W, 1 or 3)."""
    pixels = np.asarray(image)
    return pixels[..., None] if image.mode == "L" else pixels


def decoded(content: bytes, file: str) -> Decoded:
    """Return an image file's pixels as a viewer shows them; see ``gathered``.

    Args:
        content: of the file.
        file: its name, for messages.

    Raises: InputError for a file that is damaged, has several frames, or levels whose range it does not say.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=[kind for kind in FORMATS if kind in Image.OPEN]) as image:
                _check_kind(image, file)
                if image.mode in (*DEEP, "I"):
                    return _of_16_bits(image, ImageOps.exif_transpose(image))
                ImageOps.exif_transpose(image, in_place=True)
                return _of_8_bits(image)
    except InputError:
        raise
    except Exception as problem:  # Pillow raises many kinds on damage
        why = "its format is not known" if isinstance(problem, UnidentifiedImageError) else brief(problem)
        raise InputError(f"{file} is not a whole image ({why}): replace it or take it out") from None


def _check_kind(image: Image.Image, file: str) -> None:
    """Raise InputError for an image that could be shown in more than one way."""
    if getattr(image, "is_animated", False) and image.format != "MPO":  # a telephone's photograph, and its preview
        frames = getattr(image, "n_frames", "several")
        raise InputError(f"{file} has {frames} frames: give each its own file")
    if image.mode in (*GREY, *COLOUR, *DEEP) or (image.mode == "I" and image.format == "PPM"):  # scaled to 16 bits
        return
    kind = {"F": "floats", "I": "32-bit whole numbers"}.get(image.mode, f"of mode {image.mode}")
    raise InputError(f"{file} is {kind}, whose range is not known: write it as grey of 8 or 16 bits, or as RGB")


def _of_8_bits(image: Image.Image) -> Decoded:
    from PIL import Image

    mode = "L" if image.mode in GREY else "RGB"
    transparent = False
    if image.has_transparency_data:
        image = image.convert("LA" if mode == "L" else "RGBA")
        opacity = image.getchannel("A")
        transparent = opacity.getextrema() != (255, 255)
        paper = Image.new(mode, image.size, "white")
        paper.paste(image, mask=opacity)
        image = paper
    if image.mode != mode:
        return Decoded(image.convert(mode), transparent)
    image.load()
    return Decoded(image, transparent)


def _of_16_bits(image: Image.Image, upright: Image.Image) -> Decoded:
    from PIL import Image

    levels = np.asarray(upright).astype(np.uint32)
    if image.format == "TIFF" and image.tag_v2.get(262) == 0:  # type: ignore[attr-defined]  # its 0 is white
        levels = 65535 - levels
    hidden = levels == image.info.get("transparency", -1)
    levels[hidden] = 65535
    pixels = ((levels + 128) // 257).astype(np.uint8)
    return Decoded(Image.fromarray(pixels), bool(hidden.any()), int(levels.max()))


def _empty_stack(count: int, image: np.ndarray, name: str) -> np.ndarray:
    if count * image.nbytes > free_memory("cpu"):  # the system would give it, and end the process later
        raise InputError(
            f"{count:,} images of {_shape(image)} ('{name}') do not fit into memory: give --image-size, or make them smaller"
            " or fewer"
        )
    return np.empty((count, *image.shape), np.uint8)


def _shape(image: np.ndarray) -> str:
    height, width, channels = image.shape
    return f"{height}x{width} {'grey' if channels == 1 else 'RGB'}"
