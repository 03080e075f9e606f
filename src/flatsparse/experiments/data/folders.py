"""Local folders as data sets, read by their layout alone."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from flatsparse.common.errors import InputError
from flatsparse.experiments.data.image_arrays import read_arrays
from flatsparse.experiments.data.listings import class_folders, entries, file_content
from flatsparse.experiments.data.parts import Part, assembled, listed, note_of_others, part_of
from flatsparse.experiments.data.pixels import gathered
from flatsparse.experiments.data.samples import DataSet
from flatsparse.experiments.data.tables import parquet_part

NEEDED = "train.npz and test.npz, parquet files train* and test*, or images in train/CLASS/ and test/CLASS/"
DATA = ("data", "Data")  # a folder that is looked into, whatever is beside it
DEPTH = 3  # folders that may contain the parts
TABLE = re.compile(r"([a-z]+)[-_. ]?\d*(?:-of-(\d+))?(?:-[0-9a-f]{8,})?", re.IGNORECASE)  # train-00000-of-00002


def read_folder(folder: Path, name: str | None = None) -> DataSet:
    """Return the data set in a folder: arrays, tables or images, with their parts named train, test and validation.

    - Arrays: ``train.npz`` and ``test.npz``, each with ``images`` uint8 (N, H, W, 3) and ``labels``.
    - Tables: parquet files called ``train*`` and ``test*``, or in folders ``train`` and ``test``.
    - Images: ``train/CLASS/…`` and ``test/CLASS/…``; classes are the folders of the training part, in alphabetical order.

    Names of parts may have capitals; ``training``, ``testing``, ``val``, ``valid`` and ``dev`` stand for them too. They may be
    in a folder ``data``, or in the only one there is. Files are taken in the order of their names, and hidden ones never;
    links are followed. Ours, because libraries that look for such words anywhere in a path take a class for a part.

    Args:
        folder: where.
        name: the set's; by default the folder's.

    Raises: InputError for a folder that can be read in no way or in two, and for what cannot be used in it.
    """
    name = name or folder.resolve().name or "root"
    locations, left = find_parts(folder)
    notes = []
    if left:
        notes.append(f"what belongs to no part of '{name}' is left out ({listed(left)})")
    parts = {}
    for location in in_reading_order(folder, locations):
        part, paths, training = location.part, location.paths, location.part == "train"
        title = f"{name} ({part})"
        if location.kind == "arrays":
            parts[part] = _arrays(title, paths[0])
        elif location.kind == "tables":
            check_whole(title, paths)
            parts[part] = parquet_part(title, paths, training=training)
        else:
            parts[part] = _images(title, paths[0], training, notes)
    return assembled(name, str(folder.resolve()), parts, notes)


@dataclass(frozen=True)
class Location:
    """The files of a part.

    Attributes:
        stem: the name of its files, or of its folder.
        paths: the files, or the folder of the classes.
    """

    part: str
    kind: Literal["arrays", "tables", "images"]
    stem: str
    paths: tuple[Path, ...]


def find_parts(folder: Path) -> tuple[dict[str, Location], list[str]]:
    """Return the parts in a folder, or in one inside it, and the names of files and folders that belong to none."""
    inner = folder
    for _ in range(DEPTH + 1):
        inside = entries(inner)
        locations: dict[str, Location] = {}
        left = []
        for path in inside:
            location = _located(path)
            if location is None:
                left += [path.name] if os.path.isdir(path) or path.suffix.lower() in (".npz", ".parquet") else []
            elif (before := locations.get(location.part)) is None:
                locations[location.part] = location
            elif before.kind == location.kind == "tables" and before.stem == location.stem:
                locations[location.part] = dataclasses.replace(location, paths=(*before.paths, *location.paths))
            else:
                part, stem = location.part, location.stem
                raise InputError(f"'{inner}' has its {part} part twice, {before.stem} and {stem}: keep one")
        if locations:
            return locations, left
        folders = [path for path in inside if os.path.isdir(path)]
        candidates = next(
            (found for word in DATA if (found := [path for path in folders if path.name == word])), folders
        )
        if len(candidates) != 1:
            break
        (inner,) = candidates
    raise InputError(f"'{folder}' holds no data set: it needs {NEEDED}")


def in_reading_order(folder: Path, locations: Mapping[str, Location]) -> list[Location]:
    """Return the parts of a folder, the training part first, whose errors come first.

    Raises: InputError when they are of several kinds.
    """
    kinds = {location.kind for location in locations.values()}
    if len(kinds) > 1:
        raise InputError(f"'{folder}' has parts of several kinds ({', '.join(sorted(kinds))}): keep those of one")
    return sorted(locations.values(), key=lambda location: location.part != "train")


def _located(path: Path) -> Location | None:
    """Return the part that a file or folder is, or is a piece of; None for one that is no part."""
    if os.path.isdir(path):
        if (part := part_of(path.name)) is None:
            return None
        inside = entries(path)
        tables = tuple(file for file in inside if file.suffix.lower() == ".parquet" and not os.path.isdir(file))
        if tables and any(os.path.isdir(entry) for entry in inside):
            raise InputError(f"'{path}' holds both parquet files and folders: keep the one or the other")
        return Location(part, "tables" if tables else "images", f"{path.name}/", tables or (path,))
    kind = path.suffix.lower()
    if kind == ".npz" and (part := part_of(path.stem)):
        return Location(part, "arrays", path.name, (path,))
    if kind == ".parquet" and (match := TABLE.fullmatch(path.stem)) and (part := part_of(match[1])):
        return Location(part, "tables", f"{match[1]}*{path.suffix}", (path,))
    return None


# -- the kinds of parts -----------------------------------------------------------------------------------------------


def check_whole(name: str, files: Sequence[Path]) -> None:
    """Raise InputError when numbered parquet files are not all there."""
    for file in files:
        match = TABLE.fullmatch(file.stem)
        if match and match[2] and int(match[2]) != len(files):
            raise InputError(
                f"'{file}' is one of {int(match[2])} files of '{name}', but {len(files)} are there: fetch all"
            )


def _images(name: str, folder: Path, training: bool, notes: list[str]) -> Part:
    """Return a part of image files, whose classes are the folders that contain them."""
    labels: list[str] = []
    files: list[Path] = []
    others: list[str] = []
    for found in class_folders(folder, training=training, others=others):
        labels += [found.label] * len(found.images)
        files += [found.folder / image for image in found.images]
    notes += note_of_others(name, others)
    contents = ((str(file), file_content(file)) for file in files)
    return Part(name, labels, functools.partial(gathered, contents, len(files), name))


def _arrays(name: str, file: Path) -> Part:
    """Return a part of an ``.npz`` file with ``images`` uint8 (N, H, W, 1 or 3) and ``labels`` (N)."""
    images, labels = read_arrays(file)
    return Part(name, labels.tolist(), lambda: (torch.from_numpy(images), ()))
