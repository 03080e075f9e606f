"""Arrays of images in ``.npz`` files: read into memory, or mapped from a file that is not compressed."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from flatsparse.common.errors import InputError
from flatsparse.common.files import check_is_file
from flatsparse.experiments.data.pixels import brief

if TYPE_CHECKING:
    from PIL import Image

LOCAL_HEADER = struct.Struct("<26xHH")  # of a file in a zip archive: the lengths of its name and of its extra field


@dataclass(frozen=True)
class ArrayRows:
    """Images of one size in one array.

    Attributes:
        images: uint8 (N, H, W, 1 or 3); worker processes share its memory, or the file that it is mapped from.
    """

    images: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def image(self, row: int) -> Image.Image:
        """Return an image, of mode L or RGB."""
        from PIL import Image

        pixels = self.images[row].numpy()
        return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)

    def identifying(self) -> Iterator[Any]:
        """Yield the shape and the pixels."""
        yield repr(tuple(self.images.shape)).encode()
        yield self.images.contiguous().numpy().data


def read_arrays(file: Path, *, mapped: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return the images, uint8 (N, H, W, 1 or 3), and the labels (N) of an ``.npz`` file.

    Args:
        file: with the arrays ``images`` and ``labels``.
        mapped: leave the images in the file, where it is not compressed: pages are read when they are looked at, and all
            processes share them.

    Raises: InputError for a file that is damaged or holds anything else.
    """
    check_is_file(file)
    try:
        with np.load(file, allow_pickle=False) as arrays:
            labels = arrays["labels"]
            images = _mapped(file) if mapped else None
            if images is None:
                images = arrays["images"]
    except Exception as problem:  # numpy and zipfile raise many kinds on damage
        raise InputError(f"'{file}' cannot be read ({brief(problem)}): it needs arrays 'images' and 'labels'") from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape[1:]:
        grey = " (grey images: give them a last axis of 1)" if images.ndim == 3 else ""
        raise InputError(f"images in '{file}' are {images.dtype} {images.shape}, wanted uint8 (N, H, W, 3){grey}")
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
        raise InputError(f"labels in '{file}' are {labels.dtype} {labels.shape}, wanted integers ({len(images)},)")
    return images, labels


def _mapped(file: Path) -> np.ndarray | None:
    """Return the images where they lie in a file; None where they are compressed, or are no plain numbers.

    Ours, because numpy maps ``.npy`` files alone; in an archive that is not compressed, one lies whole at some place.
    """
    with zipfile.ZipFile(file) as archive:
        member = archive.getinfo("images.npy")
        if member.compress_type != zipfile.ZIP_STORED:
            return None
        with archive.open(member) as stream:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, by_columns, dtype = read(stream)
            head = stream.tell()
    if dtype.hasobject or 0 in shape:
        return None
    with file.open("rb") as stream:
        stream.seek(member.header_offset)
        lengths = LOCAL_HEADER.unpack(stream.read(LOCAL_HEADER.size))
    start = member.header_offset + LOCAL_HEADER.size + sum(lengths) + head
    # Copied where it is written to, which never happens: of a map that cannot be written to, torch warns.
    return np.memmap(file, dtype, "c", start, shape, "F" if by_columns else "C")
