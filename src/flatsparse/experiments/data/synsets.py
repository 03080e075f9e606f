"""Classes of images that lie in one folder: the lists that come with ImageNet's validation part (Russakovsky et al. 2015)."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from flatsparse.common.errors import InputError
from flatsparse.common.files import read
from flatsparse.experiments.data.listings import composed
from flatsparse.experiments.data.parts import listed
from flatsparse.experiments.data.pixels import brief

SOLUTION = "LOC_val_solution.csv"  # of the competition on Kaggle: ImageId, PredictionString
PER_IMAGE = "imagenet_2012_validation_synset_labels.txt"  # a class an image, in the order of the images' names
NUMBERS = "ILSVRC2012_validation_ground_truth.txt"  # the development kit's: a number an image, in that order
META = "meta.mat"  # the development kit's list of classes
SYNSETS = ("synsets.txt", "synset_words.txt", "LOC_synset_mapping.txt")  # a class a line, perhaps with words
KITS = ("", "ILSVRC2012_devkit_t12/data", "devkit/data")  # where lists are, in a folder
DEVKIT_CLASSES = 1000


def flat_labels(folder: Path, images: Sequence[str], within: Path) -> list[str]:
    """Return the class of each image of a folder without class folders, as a list beside it or in a folder above says.

    The list is, in this order, ``LOC_val_solution.csv``; ``imagenet_2012_validation_synset_labels.txt``; or the development
    kit's ``ILSVRC2012_validation_ground_truth.txt`` with its ``meta.mat``, or with a list of classes in the same order.

    Args:
        folder: of the images.
        images: their names, in order.
        within: the folder whose insides are looked into.

    Raises: InputError when there is no list, or it is not of these images.
    """
    if file := _found(folder, within, [SOLUTION]):
        return _of_solution(file, images, folder)
    if file := _found(folder, within, [PER_IMAGE]):
        return [composed(line) for line in _one_an_image(file, images, folder)]
    if file := _found(folder, within, [NUMBERS]):
        return _of_numbers(file, images, folder, within)
    raise InputError(
        f"'{folder}' holds images without classes: put {SOLUTION}, {PER_IMAGE} or {NUMBERS} with {META} beside it, or its"
        f" images into '{folder}/CLASS/'"
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
    wanted = f"the classes in that order, which the development kit's {META} has, or {SOLUTION} instead"
    file = _found(folder, within, SYNSETS)
    if file is None:
        raise InputError(f"'{numbers}' has numbers of classes, and no list says which: put beside it {wanted}")
    classes = [composed(line.split()[0]) for line in _lines(file)]
    if len(classes) == DEVKIT_CLASSES and classes == sorted(classes):
        raise InputError(
            f"'{file}' is in alphabetical order, and the numbers in '{numbers}' are not: put beside it {wanted}"
        )
    return classes


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
