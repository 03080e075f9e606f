"""Parts of a data set, and the set that they make: the choice of the test part, and labels as numbers."""

from __future__ import annotations

import collections
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flatsparse.common.errors import InputError
from flatsparse.experiments.data.samples import DataSet, Samples

WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
VALIDATION_SHARE = 0.1  # of a pool whose source suggests nothing
MOST_CLASSES = 2**20  # labels above are numbers of something else


@dataclass(frozen=True)
class Part:
    """A part of a data set, whose images are not read yet.

    Attributes:
        name: for messages.
        labels: the class of each image: all names, or all whole numbers from 0. -1 or None stands for a withheld one.
        read: returns the images, uint8 (N, H, W, C), and remarks on them, a sentence each; of a part that stays in its
            files, returns where they are.
        names: of the numbered classes, of a source that has them.
    """

    name: str
    labels: Sequence[Any]
    read: Callable[[], tuple[Any, tuple[str, ...]]]
    names: tuple[str, ...] | None = None

    @property
    def is_withheld(self) -> bool:
        """Return if no image has a label."""
        return all(label is None or label == -1 for label in self.labels)


def part_of(word: str) -> str | None:
    """Return the part that a file, folder or table is by its name, in capitals or not: train, validation or test."""
    return WORDS.get(word.lower())


def assembled(name: str, source: str, parts: Mapping[str, Part], notes: Iterable[str] = ()) -> DataSet:
    """Return the data set of its parts.

    Classes are those of the training part: names in alphabetical order, or numbers. Tests are of the test part, or of the
    validation part when there is no other or its labels are withheld. Held out for choices is the validation part where
    that is not the test, else a tenth of the training part.

    Args:
        name: the set's.
        source: where it came from.
        parts: train, and test or validation or both.
        notes: remarks on the set so far.

    Raises: InputError for labels that cannot be used, a class without training images, and images of unequal size.
    """
    notes = list(notes)
    used, labels, classes = used_parts(name, parts, notes)
    images = []
    for part in used:
        pixels, remarks = part.read()
        notes += remarks
        images.append(pixels)
        if pixels.shape[1:] != images[0].shape[1:]:
            first, other = tuple(images[0].shape[1:]), tuple(pixels.shape[1:])
            raise InputError(
                f"images of '{used[0].name}' are {first} and of '{part.name}' {other}: make them of one size"
            )
    pool, tested, *others = (Samples(*of_part) for of_part in zip(images, labels, strict=True))
    return DataSet(
        name,
        pool,
        tested,
        classes,
        augmented=True,
        validation_size=default_validation_size(len(pool), others),
        validation=others[0] if others else None,
        source=source,
        notes=tuple(notes),
        class_names=class_names(used[0]),
    )


def used_parts(name: str, parts: Mapping[str, Part], notes: list[str]) -> tuple[list[Part], list[Tensor], int]:
    """Return the training part, the test part and perhaps a validation part, the labels of each, and the number of classes.

    See ``assembled``. Raises: InputError for labels that cannot be used, and a class without training images.
    """
    for part in parts.values():
        if len(part.labels) == 0:
            raise InputError(f"'{part.name}' holds no images: add some, or take it away")
    held = _held_out(name, parts, notes)
    train, test = parts["train"], parts[held]
    validation = parts.get("validation") if held == "test" else None
    used = [train, test, *([] if validation is None or validation.is_withheld else [validation])]
    return used, *_numbered(used, notes)


def class_names(train: Part) -> tuple[str, ...] | None:
    """Return the names of the classes by their numbers, of a training part that names them."""
    return tuple(sorted(set(train.labels))) if isinstance(train.labels[0], str) else train.names


def default_validation_size(pool: int, others: Sequence[Sized]) -> int:
    """Return how many images to hold out unless a run asks for another number: a validation part, or a tenth of the pool."""
    return len(others[0]) if others else round(VALIDATION_SHARE * pool)


def listed(items: Collection[object]) -> str:
    """Return the first few of some items as text, and the number of the others."""
    first = ", ".join(str(item) for item in list(items)[:3])
    return first if len(items) <= 3 else f"{first} and {len(items) - 3:,} more"


def note_of_others(name: str, others: Collection[str]) -> list[str]:
    """Return the note on files of a part that are no images, where there are such."""
    if not others:
        return []
    return [f"{len(others)} files of '{name}' are no images that are read, and are left out ({listed(others)})"]


def _held_out(name: str, parts: Mapping[str, Part], notes: list[str]) -> str:
    """Return the part that is the test, and note what else is to know of it."""
    withheld = [kind for kind in ("test", "validation") if kind in parts and parts[kind].is_withheld]
    notes += [f"the labels of '{parts[kind].name}' are withheld, so that it is left out" for kind in withheld]
    held = next((kind for kind in ("test", "validation") if kind in parts and kind not in withheld), None)
    if "train" not in parts or held is None:
        hidden = f" (withheld are the labels of {' and '.join(withheld)})" if withheld else ""
        raise InputError(
            f"'{name}' has the parts {', '.join(parts)}{hidden}: it needs train, and test or validation, with labels"
        )
    if held == "validation":
        notes.append(f"'{name}' is tested on its validation part, as it has no other with labels")
    return held


def _numbered(parts: Sequence[Part], notes: list[str]) -> tuple[list[Tensor], int]:
    """Return the labels of each part as numbers, and the number of classes; the first part is the training part."""
    for part in parts:
        _check_labels(part)
    train, *others = parts
    for part in others:
        if isinstance(part.labels[0], str) != isinstance(train.labels[0], str):
            raise InputError(f"labels of '{train.name}' and '{part.name}' are not both names or both numbers")
        if part.names and train.names and part.names != train.names:
            raise InputError(
                f"numbers stand for other classes in '{part.name}' than in '{train.name}': give both one list"
            )
    known = sorted(set(train.labels))
    if len(known) == 1:
        raise InputError(f"'{train.name}' holds one class, {_class_name(known[0], train)}: give images of at least two")
    for part in others:
        counts = collections.Counter(part.labels)
        if unknown := sorted(counts.keys() - set(known)):
            named = listed([f"{_class_name(label, part)} ({counts[label]} images)" for label in unknown])
            raise InputError(
                f"'{part.name}' has classes that no image of '{train.name}' has, {named}: add such images, or take these out"
            )
        if lacking := [label for label in known if label not in counts]:
            notes.append(
                f"'{part.name}' has no images of class {listed([_class_name(label, train) for label in lacking])}"
            )
    if isinstance(known[0], str):
        numbers = {name: number for number, name in enumerate(known)}
        return [torch.tensor([numbers[label] for label in part.labels]) for part in parts], len(known)
    return [torch.tensor([int(label) for label in part.labels]) for part in parts], int(known[-1]) + 1


def _check_labels(part: Part) -> None:
    """Raise InputError for labels that stand for no class."""
    missing = sum(label is None or label == -1 for label in part.labels)
    if missing:
        raise InputError(
            f"{missing} of the {len(part.labels)} labels of '{part.name}' are missing (-1 or null): take those images out"
        )
    kinds = {type(label) for label in part.labels}
    if kinds == {str}:
        return
    if not kinds <= {int, bool}:
        types = " and ".join(sorted(kind.__name__ for kind in kinds))
        raise InputError(
            f"labels of '{part.name}' are of type {types}: give one whole number from 0, or one name, an image"
        )
    low, high = min(part.labels), max(part.labels)
    if low < 0 or high >= MOST_CLASSES:
        raise InputError(f"labels of '{part.name}' run from {low} to {high}: number the classes 0, 1, 2, …")


def _class_name(label: Any, part: Part) -> str:
    """Return the name of a class, or its number where it has none."""
    if isinstance(label, str):
        return f"'{label}'"
    return f"'{part.names[label]}'" if part.names and label < len(part.names) else f"{label}"
