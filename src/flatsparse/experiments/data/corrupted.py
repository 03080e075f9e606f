"""Published sets of corrupted images: the arrays of CIFAR-10-C and CIFAR-100-C, the folders of ImageNet-C."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flatsparse.common.errors import InputError, nearest
from flatsparse.common.files import check_is_file
from flatsparse.experiments.data.corruptions.names import CATEGORIES, EXTRA, MAIN, SEVERITIES
from flatsparse.experiments.data.pixels import brief, suffixes

LABELS = "labels.npy"
NEEDED = "NAME.npy files with labels.npy, as CIFAR-10-C has, or folders NAME/SEVERITY/CLASS, as ImageNet-C has"


@dataclass(frozen=True)
class CorruptedPart:
    """The images of one corruption at one severity.

    Attributes:
        images: uint8 (N, H, W, C), mapped from the file and not in memory; or the image files.
        labels: int64 (N).
    """

    corruption: str
    severity: int
    images: NDArray[np.uint8] | tuple[Path, ...]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class CorruptedSet:
    """A published set of corrupted images, of which nothing is read until it is iterated over, one severity after another.

    Attributes:
        folder: the set's.
        kind: ``arrays`` as in CIFAR-10-C, or ``folders`` as in ImageNet-C.
        paths: each corruption's file or folder, in the order of the paper.
        classes: the names of the classes, or their number.
        left: the names of what is in the folder and is no corruption.
    """

    folder: Path
    kind: Literal["arrays", "folders"]
    paths: Mapping[str, Path]
    classes: Sequence[str] | int
    left: tuple[str, ...] = ()

    @property
    def lacking(self) -> tuple[str, ...]:
        """The corruptions among the fifteen averaged ones that the set lacks."""
        return tuple(name for name in MAIN if name not in self.paths)

    def __iter__(self) -> Iterator[CorruptedPart]:
        for name in self.paths:
            yield from self.parts(name)

    def parts(self, name: str) -> Iterator[CorruptedPart]:
        """Yield the images of a corruption, one severity after another."""
        of_kind = _array_parts if self.kind == "arrays" else _folder_parts
        return of_kind(name, self.paths[name], self.classes)


def read_corrupted(folder: Path, classes: Sequence[str] | int) -> CorruptedSet:
    """Return a set of corrupted images in a folder, in the layout of CIFAR-10-C or of ImageNet-C.

    - Arrays: ``NAME.npy`` uint8 (5 n, H, W, C), n images at each severity in turn, and ``labels.npy`` integers (5 n).
    - Folders: ``NAME/SEVERITY/CLASS/`` with image files, or the same in folders ``noise``, ``blur``, ``weather``, ``digital``
      and ``extra``, as the archives of ImageNet-C unpack.

    A set may have some of the corruptions only; see ``lacking``.

    Args:
        folder: the set's.
        classes: the names of the classes, by which class folders are numbered; or their number, where class folders are
            numbered in alphabetical order.

    Raises: InputError for a folder with no corruption, a severity that is missing, arrays of another shape or with other
        labels, and class folders that are unknown; while iterating, for severities with unequal numbers of images.
    """
    if not folder.is_dir():
        raise InputError(f"'{folder}' is not a folder: give one with {NEEDED}")
    arrays = {path.stem: path for path in folder.glob("*.npy") if path.name != LABELS}
    folders = {path.name: path for path in _folders(folder)}
    for group in (*CATEGORIES, "extra"):
        if group in folders:
            folders |= {path.name: path for path in _folders(folders.pop(group))}
    known = (*MAIN, *EXTRA)
    found: dict[Literal["arrays", "folders"], dict[str, Path]] = {
        "arrays": {name: arrays[name] for name in known if name in arrays},
        "folders": {name: folders[name] for name in known if name in folders},
    }
    left = tuple(sorted({*arrays, *folders} - {*known}))
    if all(found.values()):
        raise InputError(f"'{folder}' has corruptions as arrays and as folders: keep those of one kind")
    if not any(found.values()):
        what = f" ('{left[0]}' is none; {nearest(left[0], known)})" if left else ""
        raise InputError(f"'{folder}' holds no corruption that is known{what}: it needs {NEEDED}")
    kind: Literal["arrays", "folders"] = "arrays" if found["arrays"] else "folders"
    for path in found[kind].values():
        if kind == "arrays":
            _array(path, classes)
        else:
            for severity in SEVERITIES:
                _class_folders(path, severity, classes)
    return CorruptedSet(folder, kind, found[kind], classes, left)


# -- arrays -----------------------------------------------------------------------------------------------------------


def _array_parts(name: str, path: Path, classes: Sequence[str] | int) -> Iterator[CorruptedPart]:
    images, labels = _array(path, classes)
    count = len(images) // len(SEVERITIES)
    for severity in SEVERITIES:
        part = slice((severity - 1) * count, severity * count)
        yield CorruptedPart(name, severity, images[part], labels[part])


def _array(path: Path, classes: Sequence[str] | int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the mapped images of a corruption at all severities, and their labels."""
    images, labels = _mapped(path), _mapped(path.with_name(LABELS))
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise InputError(f"'{path}' is {images.dtype} {images.shape}, wanted uint8 (5 n, H, W, 3): fetch it again")
    if len(images) == 0 or len(images) % len(SEVERITIES):
        raise InputError(
            f"'{path}' has {len(images):,} images, which are not five severities of equally many: fetch it again"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
        raise InputError(
            f"'{path.with_name(LABELS)}' is {labels.dtype} {labels.shape}, wanted integers ({len(images)},), as '{path.name}' has"
            " images"
        )
    by_severity = labels.reshape(len(SEVERITIES), -1)
    if (by_severity != by_severity[0]).any():
        raise InputError(
            f"'{path.with_name(LABELS)}' differs between severities, of which each has the same images: fetch it again"
        )
    count = classes if isinstance(classes, int) else len(classes)
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= count:
        raise InputError(
            f"'{path.with_name(LABELS)}' has labels from {low} to {high}, but there are {count} classes: give the set of the"
            " same data"
        )
    return images, labels.astype(np.int64)


def _mapped(path: Path) -> NDArray[Any]:
    check_is_file(path)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise TypeError("it is an archive of several")
        return array
    except FileNotFoundError:
        raise InputError(f"'{path}' is not there: put it beside the corruptions") from None
    except Exception as problem:  # numpy raises many kinds on damage
        raise InputError(f"'{path}' cannot be read as an array ({brief(problem)}): fetch it again") from None


# -- folders ----------------------------------------------------------------------------------------------------------


def _folder_parts(name: str, path: Path, classes: Sequence[str] | int) -> Iterator[CorruptedPart]:
    first = None
    for severity in SEVERITIES:
        files: list[Path] = []
        labels: list[int] = []
        for number, folder in _class_folders(path, severity, classes):
            inside = sorted(file for file in folder.iterdir() if file.suffix.lower() in suffixes())
            files += inside
            labels += [number] * len(inside)
        if not files:
            raise InputError(f"'{path / str(severity)}' holds no images: unpack the set again")
        first = len(files) if first is None else first
        if len(files) != first:
            raise InputError(
                f"'{path / str(severity)}' has {len(files):,} images, but severity 1 has {first:,}: unpack the set again"
            )
        yield CorruptedPart(name, severity, tuple(files), np.array(labels, np.int64))


def _class_folders(path: Path, severity: int, classes: Sequence[str] | int) -> list[tuple[int, Path]]:
    """Return the class folders of a corruption at a severity, each with the number of its class."""
    place = path / str(severity)
    if not place.is_dir():
        raise InputError(f"'{path}' has no severity {severity}: it needs folders 1 to 5")
    folders = _folders(place)
    if isinstance(classes, int):
        if len(folders) != classes:
            raise InputError(f"'{place}' has {len(folders)} class folders, but there are {classes} classes")
        return list(enumerate(folders))
    numbers = {name: number for number, name in enumerate(classes)}
    for folder in folders:
        if folder.name not in numbers:
            raise InputError(f"'{folder}' is of no class that is known ({nearest(folder.name, classes)})")
    return [(numbers[folder.name], folder) for folder in folders]


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and os.path.isdir(path))
    except OSError as problem:
        raise InputError(f"folder '{folder}' cannot be read ({problem.strerror}): make it readable") from None
