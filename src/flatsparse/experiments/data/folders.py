"""A local folder as a data set: read by what its layout says, and by nothing else."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from flatsparse.common.errors import InputError
from flatsparse.common.files import read
from flatsparse.experiments.data.parts import Part, assembled, listed, part_of
from flatsparse.experiments.data.pixels import brief, gathered, suffixes
from flatsparse.experiments.data.splits import DataSet
from flatsparse.experiments.data.tables import parquet_part

NEEDED = "train.npz and test.npz, parquet files train* and test*, or images in train/CLASS/ and test/CLASS/"
DEPTH = 3  # folders that may lie around the parts
LITTER = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "icon\r"}  # put there by file managers and archives
TABLE = re.compile(r"([a-z]+)[-_. ]?\d*(?:-of-(\d+))?(?:-[0-9a-f]{8,})?", re.IGNORECASE)  # train-00000-of-00002


def read_folder(folder: Path, name: str | None = None) -> DataSet:
    """The data set in a folder: arrays, tables or images, with their parts named train, test and validation.

    - Arrays: ``train.npz`` and ``test.npz``, each with ``images`` uint8 (N, H, W, 3) and ``labels``.
    - Tables: parquet files called ``train*`` and ``test*``, or in folders ``train`` and ``test``.
    - Images: ``train/CLASS/…`` and ``test/CLASS/…``; classes are the folders of the training part, in alphabetical order.

    Names of parts may have capitals; ``training``, ``testing``, ``val``, ``valid`` and ``dev`` stand for them too. They may lie
    in a folder ``data``, or in the only one there is. Files are taken in the order of their names, and hidden ones never;
    links are followed. Ours, because libraries that look for such words anywhere in a path take a class for a part.

    Args:
        folder: where.
        name: the set's; by default the folder's.

    Raises: InputError for a folder that can be read in no way or in two, and for what cannot be used in it.
    """
    name = name or folder.resolve().name or "root"
    found, left = _found(folder)
    notes = []
    if left:
        notes.append(f"what belongs to no part of '{name}' is left out ({listed(left)})")
    kinds = {there.kind for there in found.values()}
    if len(kinds) > 1:
        raise InputError(f"'{folder}' has parts of several kinds ({', '.join(sorted(kinds))}): keep those of one")
    parts = {}
    for there in sorted(found.values(), key=lambda there: there.part != "train"):  # whose faults are told first
        told, training = f"{name} ({there.part})", there.part == "train"
        if there.kind == "arrays":
            parts[there.part] = _arrays(told, there.paths[0])
        elif there.kind == "tables":
            parts[there.part] = _tables(told, there.paths, training)
        else:
            parts[there.part] = _images(told, there.paths[0], training, notes)
    return assembled(name, str(folder.resolve()), parts, notes)


@dataclass(frozen=True)
class _There:
    """Where a part lies.

    Attributes:
        stem: what its files, or its folder, are called.
        paths: the files, or the folder of the classes.
    """

    part: str
    kind: Literal["arrays", "tables", "images"]
    stem: str
    paths: tuple[Path, ...]


def _found(folder: Path) -> tuple[dict[str, _There], list[str]]:
    """The parts in a folder, or in one inside it; and the names of what belongs to none."""
    place = folder
    for _ in range(DEPTH + 1):
        entries = _entries(place)
        found: dict[str, _There] = {}
        left = []
        for path in entries:
            there = _there(path)
            if there is None:
                left += [path.name] if os.path.isdir(path) or path.suffix.lower() in (".npz", ".parquet") else []
            elif (before := found.get(there.part)) is None:
                found[there.part] = there
            elif before.kind == there.kind == "tables" and before.stem == there.stem:
                found[there.part] = dataclasses.replace(there, paths=(*before.paths, *there.paths))
            else:
                raise InputError(f"'{place}' has its {there.part} part twice, {before.stem} and {there.stem}: keep one")
        if found:
            return found, left
        folders = [path for path in entries if os.path.isdir(path)]
        inner = [path for path in folders if path.name == "data"] or folders
        if len(inner) != 1:
            break
        (place,) = inner
    raise InputError(f"'{folder}' holds no data set: it needs {NEEDED}")


def _there(path: Path) -> _There | None:
    """The part that a file or folder is, or is a piece of."""
    if os.path.isdir(path):
        if (part := part_of(path.name)) is None:
            return None
        inside = _entries(path)
        tables = tuple(file for file in inside if file.suffix.lower() == ".parquet" and not os.path.isdir(file))
        if tables and any(os.path.isdir(entry) for entry in inside):
            raise InputError(f"'{path}' holds both parquet files and folders: keep the one or the other")
        return _There(part, "tables" if tables else "images", f"{path.name}/", tables or (path,))
    kind = path.suffix.lower()
    if kind == ".npz" and (part := part_of(path.stem)):
        return _There(part, "arrays", path.name, (path,))
    if kind == ".parquet" and (told := TABLE.fullmatch(path.stem)) and (part := part_of(told[1])):
        return _There(part, "tables", f"{told[1]}*{path.suffix}", (path,))
    return None


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, in one order on every machine, less what is hidden."""
    try:
        names = os.listdir(folder)
        os.stat(os.path.join(folder, "."))  # which may be closed where the names are not
    except OSError as problem:
        raise InputError(f"folder '{folder}' cannot be read ({problem.strerror}): make it readable") from None
    shown = (name for name in names if not name.startswith(".") and name.lower() not in LITTER)
    return [folder / name for name in sorted(shown, key=lambda name: (_composed(name), name))]


def _composed(name: str) -> str:
    """A name in the form that most systems write: some write an accent as a sign of its own."""
    return unicodedata.normalize("NFC", name)


# -- the kinds of parts -----------------------------------------------------------------------------------------------


def _tables(name: str, files: Sequence[Path], training: bool) -> Part:
    for file in files:
        told = TABLE.fullmatch(file.stem)
        if told and told[2] and int(told[2]) != len(files):
            raise InputError(
                f"'{file}' is one of {int(told[2])} files of '{name}', but {len(files)} are there: fetch all"
            )
    return parquet_part(name, files, training=training)


def _images(name: str, folder: Path, training: bool, notes: list[str]) -> Part:
    """Files by the folder that they lie in, which is their class."""
    labels: list[str] = []
    files: list[Path] = []
    others: list[str] = []
    seen: dict[str, Path] = {}
    for place in _entries(folder):
        if not os.path.isdir(place):
            if place.suffix.lower() in suffixes():
                raise InputError(f"'{place}' lies in no class: put it into '{folder}/CLASS/'")
            others.append(place.name)
            continue
        label = _composed(place.name)
        if (other := seen.setdefault(label, place)) is not place:
            raise InputError(f"'{other}' and '{place}' are written alike: put them into one folder")
        inside = _entries(place)
        if deeper := next((entry for entry in inside if os.path.isdir(entry)), None):
            raise InputError(f"'{deeper}' is a folder in a class: put its images into '{place}', or make it a class")
        images = [entry for entry in inside if entry.suffix.lower() in suffixes()]
        others += [f"{place.name}/{entry.name}" for entry in inside if entry.suffix.lower() not in suffixes()]
        if training and not images:
            raise InputError(f"class '{place}' holds no images: add some, or take it away")
        labels += [label] * len(images)
        files += images
    if others:
        notes.append(
            f"{len(others)} files of '{name}' are no images that are read, and are left out ({listed(others)})"
        )
    contents = ((str(file), _content(file)) for file in files)
    return Part(name, labels, functools.partial(gathered, contents, len(files), name))


def _content(file: Path) -> bytes:
    if not os.path.isfile(file):
        raise InputError(f"{file} is not a file (a link that leads nowhere?): replace it or take it out")
    return read(file)


def _arrays(name: str, file: Path) -> Part:
    """``images`` uint8 (N, H, W, 1 or 3) and ``labels`` (N) of an ``.npz`` file."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"]
    except Exception as problem:  # numpy and zipfile raise many kinds on damage
        raise InputError(f"'{file}' cannot be read ({brief(problem)}): it needs arrays 'images' and 'labels'") from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape[1:]:
        grey = " (grey images: give them a last axis of 1)" if images.ndim == 3 else ""
        raise InputError(f"images in '{file}' are {images.dtype} {images.shape}, wanted uint8 (N, H, W, 3){grey}")
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
        raise InputError(f"labels in '{file}' are {labels.dtype} {labels.shape}, wanted integers ({len(images)},)")
    return Part(name, labels.tolist(), lambda: (torch.from_numpy(images), ()))
