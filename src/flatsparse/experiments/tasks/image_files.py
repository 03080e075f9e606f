"""Images that stay in their files as the task of a run: ImageNet, or any folder of images of any size."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import torch

from flatsparse.common.errors import InputError
from flatsparse.experiments.data.file_sets import read_image_files
from flatsparse.experiments.data.image_files import ImageFileSet
from flatsparse.experiments.data.known_file_sets import KNOWN_FILE_SETS, find_known
from flatsparse.experiments.data.streamed import streamed_splits
from flatsparse.experiments.data.views import View
from flatsparse.experiments.tasks.classification import Classification
from flatsparse.experiments.tasks.networks import network
from flatsparse.experiments.tasks.settings import Dataset

IMAGENET = "imagenet"
MOST_WORKERS = 8  # unless a run asks for more


def is_of_files(chosen: Dataset) -> bool:
    """Return if a run's images stay in their files."""
    return chosen.data in KNOWN_FILE_SETS or chosen.image_size is not None


def image_file_task(
    chosen: Dataset, *, model: str, seed: int, label_noise: float, label_smoothing: float
) -> Classification:
    """Return the task of classifying images that are read while a run trains; which are trained on follows the seed.

    Training images are random crops, resized and flipped (Szegedy et al. 2015); others are the middle of a resized image.

    Raises: InputError for data that are not there, or are no folder of images.
    """
    known = KNOWN_FILE_SETS.get(chosen.data)
    folder = find_known(chosen.data, chosen.data_dir) if known else Path(chosen.data).expanduser()
    if not os.path.isdir(folder):
        names = ", ".join(KNOWN_FILE_SETS)
        raise InputError(f"--image-size is for a folder of images or {names}, not '{chosen.data}': leave it out")
    data = _read(folder, chosen.data if known else None)
    view = View(chosen.image_size or (known.size if known else View.size), chosen.resize)
    splits = streamed_splits(
        data,
        view,
        _workers(chosen.workers),
        train_size=chosen.train_size,
        validation_size=chosen.validation_size,
        label_noise=label_noise,
        seed=seed,
    )
    return Classification(
        name=data.name,
        identity=data.identity,
        splits=splits,
        fresh=functools.partial(network, model, data.classes, 3),
        samples=f"images of {data.classes} classes",
        loss_name="cross-entropy",
        notes=(*data.notes, *_note_of_classes(data)),
        augmented=data.augmented and chosen.augmentation,
        classes=data.classes,
        blank=torch.zeros(1, 3, view.size, view.size),
        network=model,
        label_smoothing=label_smoothing,
        class_names=_synsets(data),
    )


@functools.cache
def _read(folder: Path, name: str | None) -> ImageFileSet:
    return read_image_files(folder, name)


def _workers(asked: int | None) -> int:
    """Return the number of processes that read: by default one for each core, but no more than a few."""
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, cores)


def _note_of_classes(data: ImageFileSet) -> tuple[str, ...]:
    """Return a note when a set by a known name has other classes."""
    known = KNOWN_FILE_SETS.get(data.name)
    if known is None or data.classes == known.classes:
        return ()
    return (f"{data.name} has {known.classes:,} classes; '{data.source}' has {data.classes:,}",)


def _synsets(data: ImageFileSet) -> tuple[str, ...] | None:
    """Return the names of the classes; None for ImageNet from the hub, whose words are not the names of class folders.

    Its classes are in the order of their synsets, which is that of the folders.
    """
    names = data.class_names
    return None if data.name == IMAGENET and names and any(", " in name for name in names) else names
