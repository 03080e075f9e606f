"""Listings of folders: what is in them, in one order on every machine, and the classes whose folders hold images."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flatsparse.common.errors import InputError
from flatsparse.experiments.data.pixels import suffixes

LITTER = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "icon\r"}  # put there by file managers and archives


@dataclass(frozen=True)
class ClassFolder:
    """A folder whose images are of one class.

    Attributes:
        label: its name, in the form that most systems write.
        images: the names of its images, in order.
        others: the names of its other files, in order.
    """

    label: str
    folder: Path
    images: list[str]
    others: list[str]


def entries(folder: Path) -> list[Path]:
    """Return the entries of a folder that are not hidden, in one order on every machine."""
    try:
        names = os.listdir(folder)
        os.stat(os.path.join(folder, "."))  # which may be closed where the names are not
    except OSError as problem:
        raise _unreadable(folder, problem) from None
    return [folder / name for name in in_order(name for name in names if is_shown(name))]


def is_image(name: str) -> bool:
    """Return if a file of a name is read as an image."""
    return os.path.splitext(name)[1].lower() in suffixes()


def is_shown(name: str) -> bool:
    """Return if a name is neither hidden nor a file manager's."""
    return not name.startswith(".") and name.lower() not in LITTER


def in_order(names: Iterator[str]) -> list[str]:
    """Return names in the order that files are taken in, which no machine's way of writing accents changes."""
    return sorted(names, key=lambda name: (composed(name), name))


def composed(name: str) -> str:
    """Return a name in the form that most systems write: some write an accent as a sign of its own."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def class_folders(folder: Path, *, training: bool, others: list[str]) -> Iterator[ClassFolder]:
    """Yield the classes of a folder ``CLASS/IMAGE``, in the order of their names.

    Args:
        folder: where.
        training: each class must hold an image.
        others: gets the names of files that are no images.

    Raises: InputError for an image in no class, a folder in a class, and two classes that are written alike.
    """
    classes: dict[str, Path] = {}
    for entry in entries(folder):
        if not os.path.isdir(entry):
            if is_image(entry.name):
                raise InputError(f"'{entry}' is in no class folder: put it into '{folder}/CLASS/'")
            others.append(entry.name)
            continue
        label = composed(entry.name)
        if (other := classes.setdefault(label, entry)) is not entry:
            raise InputError(f"'{other}' and '{entry}' are written alike: put them into one folder")
        found = _class_folder(label, entry)
        others += [f"{entry.name}/{name}" for name in found.others]
        if training and not found.images:
            raise InputError(f"class '{entry}' holds no images: add some, or take it away")
        yield found


def file_content(file: Path | str) -> bytes:
    """Return what a file holds. Raises InputError when it cannot be read."""
    if not os.path.isfile(file):
        raise InputError(f"{file} is not a file (a link that leads nowhere?): replace it or take it out")
    try:
        with open(file, "rb") as stream:
            return stream.read()
    except OSError as problem:
        raise InputError(f"cannot read '{file}' ({problem.strerror})") from None


def _class_folder(label: str, folder: Path) -> ClassFolder:
    """Return a class, without asking the file system for each file: a folder's entries say what they are."""
    try:
        with os.scandir(folder) as found:
            inside = {entry.name: _is_folder(entry) for entry in found if is_shown(entry.name)}
        os.stat(os.path.join(folder, "."))
    except OSError as problem:
        raise _unreadable(folder, problem) from None
    names = in_order(iter(inside))
    if deeper := next((name for name in names if inside[name]), None):
        raise InputError(
            f"'{folder / deeper}' is a folder in a class: put its images into '{folder}', or make it a class"
        )
    images = [name for name in names if is_image(name)]
    return ClassFolder(label, folder, images, [name for name in names if not is_image(name)])


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circle of links
        return False


def _unreadable(folder: Path, problem: OSError) -> InputError:
    return InputError(f"folder '{folder}' cannot be read ({problem.strerror}): make it readable")
