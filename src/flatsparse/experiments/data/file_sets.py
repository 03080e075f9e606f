"""Local folders as data sets of images that stay in their files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from flatsparse.experiments.data.folders import Location, check_whole, find_parts, in_reading_order
from flatsparse.experiments.data.image_arrays import ArrayRows, read_arrays
from flatsparse.experiments.data.image_files import ImageFiles, ImageFileSet, file_list, table_rows
from flatsparse.experiments.data.listings import class_folders, entries, is_image
from flatsparse.experiments.data.parts import (
    Part,
    class_names,
    default_validation_size,
    listed,
    note_of_others,
    used_parts,
)
from flatsparse.experiments.data.synsets import flat_labels
from flatsparse.experiments.data.tables import table_labels


def read_image_files(folder: Path, name: str | None = None) -> ImageFileSet:
    """Return the data set in a folder, whose images stay in their files and may be of any size and kind.

    Parts and classes are found as by ``read_folder``. Besides, images of the validation part may lie in one folder, with a
    list of their classes (``flat_labels``); those of a test part may lie so without one, and it is left out. So a folder is
    read as ImageNet comes: ``ILSVRC/Data/CLS-LOC/{train,val,test}`` beside ``LOC_val_solution.csv`` from Kaggle; ``train/CLASS/``
    and ``val/`` beside ``ILSVRC2012_devkit_t12``; or the hub's ``data/{train,validation,test}-*.parquet``. Arrays stay in their
    files too, where these are not compressed.

    Args:
        folder: where.
        name: the set's; by default the folder's.

    Raises: InputError for a folder that can be read in no way or in two, and for what cannot be used in it. Images are not
        looked at.
    """
    name = name or folder.resolve().name or "root"
    locations, left = find_parts(folder)
    notes = [f"what belongs to no part of '{name}' is left out ({listed(left)})"] if left else []
    parts = {location.part: _part(name, location, folder, notes) for location in in_reading_order(folder, locations)}
    used, labels, classes = used_parts(name, parts, notes)
    pool, test, *others = (ImageFiles(part.read()[0], own) for part, own in zip(used, labels, strict=True))
    return ImageFileSet(
        name,
        pool,
        test,
        classes,
        augmented=True,
        validation_size=default_validation_size(len(pool), others),
        validation=others[0] if others else None,
        source=str(folder.resolve()),
        notes=tuple(notes),
        class_names=class_names(used[0]),
    )


def _part(name: str, location: Location, folder: Path, notes: list[str]) -> Part:
    title, training = f"{name} ({location.part})", location.part == "train"
    if location.kind == "arrays":
        images, labels = read_arrays(location.paths[0], mapped=True)
        return Part(title, labels.tolist(), lambda: (ArrayRows(torch.from_numpy(images)), ()))
    if location.kind == "tables":
        check_whole(title, location.paths)
        numbers, names = table_labels(title, location.paths, training=training)
        return Part(title, numbers, lambda: (table_rows(title, location.paths), ()), names)
    place = location.paths[0]
    if not training and _is_flat(place):
        return _flat_part(title, location.part, place, folder, notes)
    return _class_part(title, place, training, notes)


def _is_flat(folder: Path) -> bool:
    """Return if a folder holds images and no folders."""
    inside = entries(folder)
    return any(is_image(file.name) for file in inside) and not any(os.path.isdir(file) for file in inside)


def _flat_part(title: str, part: str, folder: Path, within: Path, notes: list[str]) -> Part:
    """Return a part of image files in one folder; the labels of a test part are withheld."""
    inside = [file.name for file in entries(folder)]
    images = [name for name in inside if is_image(name)]
    labels = [-1] * len(images) if part == "test" else flat_labels(folder, images, within)
    notes += note_of_others(title, [name for name in inside if not is_image(name)])
    files = file_list(folder, images)
    return Part(title, labels, lambda: (files, ()))


def _class_part(title: str, folder: Path, training: bool, notes: list[str]) -> Part:
    """Return a part of image files, whose classes are the folders that contain them."""
    labels: list[str] = []
    others: list[str] = []

    def paths() -> Iterator[str]:
        for found in class_folders(folder, training=training, others=others):
            labels.extend([found.label] * len(found.images))
            yield from (f"{found.folder.name}/{image}" for image in found.images)

    files = file_list(folder, paths())
    notes += note_of_others(title, others)
    return Part(title, labels, lambda: (files, ()))
