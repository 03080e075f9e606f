"""Classes of images that lie in one folder: the lists that come with ImageNet's validation part (Russakovsky et al. 2015)."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from flatsparse.common.errors import InputError
from flatsparse.common.files import read
from flatsparse.experiments.data.listings import composed
from flatsparse.experiments.data.parts import listed
from flatsparse.experiments.data.pixels import brief

SOLUTION = "LOC_val_solution.csv"  # of the competition on Kaggle: ImageId, PredictionString
NAMES = "val.txt"  # the name of an image and its class a line, or the class's number from 0 in a list
PER_IMAGE = "imagenet_2012_validation_synset_labels.txt"  # a class an image, in the order of the images' names
NUMBERS = "ILSVRC2012_validation_ground_truth.txt"  # the development kit's: a number an image, in that order
META = "meta.mat"  # the development kit's list of classes
SYNSETS = ("synsets.txt", "synset_words.txt", "LOC_synset_mapping.txt")  # a class a line, perhaps with words
KITS = ("", "ILSVRC2012_devkit_t12/data", "devkit/data")  # where lists are, in a folder
DEVKIT_CLASSES = 1000


def flat_labels(folder: Path, images: Sequence[str], within: Path) -> list[str]:
    """Return the class of each image of a folder without class folders, as a list beside it or in a folder above says.

    The list is, in this order, ``LOC_val_solution.csv``; ``val.txt`` with a name and a class a line, or with a number from 0 in
    ``synsets.txt``; ``imagenet_2012_validation_synset_labels.txt``; or the development kit's
    ``ILSVRC2012_validation_ground_truth.txt`` with its ``meta.mat``, or with a list of classes in the same order.

    Args:
        folder: of the images.
        images: their names, in order.
        within: the folder whose insides are looked into.

    Raises: InputError when there is no list, or it is not of these images.
    """
    if file := _found(folder, within, [SOLUTION]):
        return _of_solution(file, images, folder)
    if file := _found(folder, within, [NAMES]):
        return _of_names(file, images, folder, within)
    if file := _found(folder, within, [PER_IMAGE]):
        return [composed(line) for line in _one_an_image(file, images, folder)]
    if file := _found(folder, within, [NUMBERS]):
        return _of_numbers(file, images, folder, within)
    raise InputError(
        f"'{folder}' holds images without classes: put {SOLUTION}, {NAMES}, {PER_IMAGE} or {NUMBERS} with {META} beside it,"
        f" or its images into '{folder}/CLASS/'"
    )


def _found(folder: Path, within: Path, names: Iterable[str]) -> Path | None:
    """Return the first file of some names that is in a folder of images, beside it, or in a folder above."""
    above = [folder, *folder.parents]
    above = above[: above.index(within) + 1]
    files = (parent / kit / name for name in names for parent in above for kit in KITS)
    return next((file for file in files if os.path.isfile(file)), None)


def _lines(file: Path) -> list[str]:
    try:
        lines = read(file).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"'{file}' is no text: replace it") from None
    return [line.strip() for line in lines if line.strip()]


def _one_an_image(file: Path, images: Sequence[str], folder: Path) -> list[str]:
    lines = _lines(file)
    if len(lines) != len(images):
        raise InputError(
            f"'{file}' has {len(lines)} lines, and '{folder}' {len(images)} images: it needs one an image, in the order of"
            " their names"
        )
    return lines


def _of_solution(file: Path, images: Sequence[str], folder: Path) -> list[str]:
    classes: dict[str, str] = {}
    for line in csv.reader(_lines(file)[1:]):
        if len(line) < 2 or not line[1].split():
            raise InputError(f"'{file}' has the line {','.join(line)[:80]!r}: wanted ImageId,PredictionString")
        classes[line[0]] = composed(line[1].split()[0])
    return _of_each(file, classes, images, folder)


def _of_names(file: Path, images: Sequence[str], folder: Path, within: Path) -> list[str]:
    classes: dict[str, str] = {}
    for line in _lines(file):
        if len(words := line.split()) != 2:
            raise InputError(f"'{file}' has the line {line[:80]!r}: wanted the name of an image and its class")
        classes[os.path.splitext(words[0])[0]] = composed(words[1])
    if all(label.isdecimal() for label in classes.values()):
        known = _listed_classes(file, folder, within)
        if wrong := [label for label in classes.values() if int(label) >= len(known)]:
            raise InputError(f"'{file}' has the number {wrong[0]}: wanted 0 to {len(known) - 1}")
        classes = {name: known[int(label)] for name, label in classes.items()}
    return _of_each(file, classes, images, folder)


def _of_each(file: Path, classes: Mapping[str, str], images: Sequence[str], folder: Path) -> list[str]:
    """Return the class of each image, of a list of exactly these by their names without endings."""
    names = [os.path.splitext(image)[0] for image in images]
    if missing := [name for name in names if name not in classes]:
        raise InputError(
            f"'{file}' does not have {len(missing)} of the {len(images)} images in '{folder}' ({listed(missing)}): take them out"
        )
    if lost := classes.keys() - set(names):
        raise InputError(
            f"'{folder}' does not have {len(lost)} of the {len(classes)} images in '{file}' ({listed(sorted(lost))}): fetch all,"
            " or take their lines out"
        )
    return [classes[name] for name in names]


def _of_numbers(file: Path, images: Sequence[str], folder: Path, within: Path) -> list[str]:
    lines = _one_an_image(file, images, folder)
    classes = _numbered_classes(file, folder, within)
    if wrong := [line for line in lines if not line.isdecimal() or not 1 <= int(line) <= len(classes)]:
        raise InputError(f"'{file}' has the line {wrong[0][:80]!r}: wanted numbers from 1 to {len(classes)}")
    return [classes[int(line) - 1] for line in lines]


def _numbered_classes(numbers: Path, folder: Path, within: Path) -> list[str]:
    """Return the classes that the development kit's numbers stand for, from 1."""
    if file := _found(folder, within, [META]):
        return _of_meta(file)
    classes = _listed_classes(numbers, folder, within)
    if len(classes) == DEVKIT_CLASSES and classes == sorted(classes):
        raise InputError(
            f"'{numbers}' has numbers that are not of an alphabetical list, and no other is there: put the development kit's"
            f" {META} beside it, or {SOLUTION}"
        )
    return classes


def _listed_classes(numbers: Path, folder: Path, within: Path) -> list[str]:
    """Return the classes that a list has, in its order."""
    file = _found(folder, within, SYNSETS)
    if file is None:
        raise InputError(
            f"'{numbers}' has numbers of classes, and no list says which: put {SYNSETS[0]} beside it, a class a line in their"
            f" order, or {META} for those of the development kit"
        )
    return [composed(line.split()[0]) for line in _lines(file)]


def _of_meta(file: Path) -> list[str]:
    """Return the classes of the development kit by their numbers; those above are groups of classes."""
    from scipy.io import loadmat

    try:
        synsets = loadmat(str(file), squeeze_me=True)["synsets"]
        leaves = [synset for synset in synsets if int(synset["num_children"]) == 0]
        numbers = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in leaves}
        return [numbers[number] for number in range(1, len(numbers) + 1)]
    except Exception as problem:  # scipy raises many kinds on damage
        raise InputError(f"'{file}' is not the development kit's ({brief(problem)}): fetch it again") from None
