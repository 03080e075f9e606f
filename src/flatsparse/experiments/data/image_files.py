"""Images that stay in their files: an index of a few bytes each, which worker processes share."""

from __future__ import annotations

import array
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flatsparse.common.errors import InputError
from flatsparse.experiments.data.image_arrays import ArrayRows
from flatsparse.experiments.data.listings import file_content
from flatsparse.experiments.data.pixels import decoded
from flatsparse.experiments.data.samples import LabelledSet
from flatsparse.experiments.data.tables import columns, entry_content, opened

if TYPE_CHECKING:
    from PIL import Image

GROUPS = 2  # of rows of a parquet file that a process keeps


@dataclass(frozen=True)
class FileList:
    """Image files below a folder.

    Their paths are one array of bytes, because a list of a million texts takes 100 MB, and as much again in each worker:
    whoever counts references to an object writes to its memory.

    Attributes:
        root: the folder.
        paths: uint8, the paths from there, one after another.
        ends: int64 (N), where each ends in ``paths``.
    """

    root: str
    paths: Tensor
    ends: Tensor

    def __len__(self) -> int:
        return len(self.ends)

    def path(self, row: int) -> str:
        """Return the path of a file."""
        paths, ends = self.paths.numpy(), self.ends.numpy()  # which a single entry is read from in a tenth of the time
        return f"{self.root}{os.sep}{os.fsdecode(paths[ends[row - 1] if row else 0 : ends[row]].tobytes())}"

    def content(self, row: int) -> tuple[str, bytes]:
        """Return a file's name, for messages, and what it holds. Raises InputError when it cannot be read."""
        path = self.path(row)
        return path, file_content(path)

    def image(self, row: int) -> Image.Image:
        """Return an image, of mode L or RGB. Raises InputError for one that is damaged."""
        file, content = self.content(row)
        return decoded(content, file).image

    def identifying(self) -> Iterator[Any]:
        """Yield the paths and the sizes of the files: to read them all would take hours."""
        yield self.paths.numpy().data
        yield np.fromiter((_size(self.path(row)) for row in range(len(self))), np.int64, len(self)).data


@dataclass(frozen=True)
class TableRows:
    """Images in the rows of parquet files. A process keeps two groups of rows, and reads a whole one for an image elsewhere.

    So shuffled rows are slower than files: 4 ms an image in groups of 100 as the hub writes them, where in order they take 0.1.

    Attributes:
        name: of the part, for messages.
        files: in their order.
        groups: int64 (G, 2), the file of each group of rows, and its number there.
        ends: int64 (G), the number of rows up to the end of each group.
    """

    name: str
    files: tuple[Path, ...]
    groups: Tensor
    ends: Tensor

    def __len__(self) -> int:
        return int(self.ends[-1])

    def content(self, row: int) -> tuple[str, bytes]:
        """Return an image's name, for messages, and its file's content. Raises InputError when it cannot be read."""
        number = int(torch.searchsorted(self.ends, row, right=True))
        file, group = self.groups[number].tolist()
        start = int(self.ends[number - 1]) if number else 0
        images = _row_group(self.files[file], group, self.name)
        return entry_content(images[row - start].as_py(), f"image {row} of '{self.name}'")

    def image(self, row: int) -> Image.Image:
        """Return an image, of mode L or RGB. Raises InputError for one that is damaged."""
        file, content = self.content(row)
        return decoded(content, file).image

    def identifying(self) -> Iterator[Any]:
        """Yield the names and the sizes of the files."""
        yield repr([(file.name, _size(str(file))) for file in self.files]).encode()


@dataclass(frozen=True)
class ImageFiles:
    """Images in files, of any size and kind, and their labels, int64 (N); those in an array are of one size.

    Attributes:
        stored: where these are, or more than these.
        rows: the indices of these in ``stored``, in their order; all by default.
    """

    stored: FileList | TableRows | ArrayRows
    labels: Tensor
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor) -> ImageFiles:
        """Return the images at some indices."""
        return ImageFiles(self.stored, self.labels[index], index if self.rows is None else self.rows[index])

    def relabelled(self, labels: Tensor) -> ImageFiles:
        """Return the same images with other labels."""
        return ImageFiles(self.stored, labels, self.rows)

    def stored_rows(self, index: Tensor) -> Tensor:
        """Return the rows of images in ``stored``."""
        return index if self.rows is None else self.rows[index]

    def identifying(self, classes: int) -> Iterator[Any]:
        """Yield labels, paths and sizes of the files, of a whole set."""
        yield repr((len(self), classes)).encode()
        yield self.labels.contiguous().numpy().data
        yield from self.stored.identifying()


class ImageFileSet(LabelledSet[ImageFiles]):
    """A data set of images that stay in their files."""


def file_list(root: Path, paths: Iterable[str]) -> FileList:
    """Return the list of files below a folder.

    >>> files = file_list(Path("train"), ["cat/1.png", "dog/22.png"])
    >>> len(files), Path(files.path(1)).parts[-2:]
    (2, ('dog', '22.png'))
    """
    text, ends = bytearray(), array.array("q")
    for path in paths:
        text += os.fsencode(path)
        ends.append(len(text))
    if not ends:  # which torch takes no buffer for
        return FileList(os.path.abspath(root), torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))
    return FileList(
        os.path.abspath(root), torch.frombuffer(text, dtype=torch.uint8), torch.frombuffer(ends, dtype=torch.int64)
    )


def table_rows(name: str, files: Sequence[Path]) -> TableRows:
    """Return the rows of parquet files, of which only the ends are read. Raises InputError for one that is damaged."""
    groups: list[tuple[int, int]] = []
    counts: list[int] = []
    for number, file in enumerate(files):
        with opened(file) as table:
            for group in range(table.num_row_groups):
                groups.append((number, group))
                counts.append(table.metadata.row_group(group).num_rows)
    return TableRows(
        name, tuple(file.absolute() for file in files), torch.tensor(groups), torch.tensor(counts).cumsum(0)
    )


@functools.lru_cache(maxsize=GROUPS)
def _row_group(file: Path, group: int, name: str) -> Any:
    """Return the images of a group of rows, as Arrow's array."""
    with opened(file) as table:
        image, _ = columns(table.schema_arrow.names, name, labelled=False)
        return table.read_row_group(group, columns=[image], use_threads=False).column(0)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as problem:
        raise InputError(f"{path} cannot be read ({problem.strerror}): replace it or take it out") from None
