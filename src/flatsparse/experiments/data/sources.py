"""Sources of data sets: embedded ones, known ones in their classic forms, a user's folder, or the hub."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path

from flatsparse.common.errors import InputError, unknown
from flatsparse.experiments.data.cifar import cifar10, cifar100
from flatsparse.experiments.data.digits import digits
from flatsparse.experiments.data.folders import read_folder
from flatsparse.experiments.data.parts import assembled
from flatsparse.experiments.data.samples import DataSet
from flatsparse.experiments.data.tables import hub_parts

EMBEDDED = ("digits",)
SOURCES: dict[str, Callable[[Path], DataSet]] = {
    "digits": digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
}


def load(name: str, data_dir: Path | None = None) -> DataSet:
    """Return a data set by name, folder or hub id.

    Args:
        name: one of ``SOURCES``; a folder, see ``read_folder``; or a hub id such as ``owner/name``.
        data_dir: the folder of local copies of named sets; by default the variable FLATSPARSE_DATA, else ``./data``.

    Raises: InputError for an unknown name, when no copy is found, or when one cannot be used.
    """
    if name in SOURCES:
        return SOURCES[name](Path() if name in EMBEDDED else folder_of_copies(data_dir))
    path = _path(name)
    if name and os.path.isdir(path):  # which takes a name that is too long
        return _folder(path)
    if name and os.path.exists(path):
        raise InputError(f"'{name}' is a file: give the folder that holds the data set")
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return assembled(name, f"hub:{name}", hub_parts(name, name))
    raise unknown("data set, and no folder of that name,", name, SOURCES)


def folder_of_copies(data_dir: Path | None) -> Path:
    """Return the folder of local copies. Raises InputError for one that was named and is not there."""
    named = data_dir or os.environ.get("FLATSPARSE_DATA")
    folder = _path(str(named or "data"))
    if named and not os.path.isdir(folder):
        raise InputError(f"data folder '{folder}' is not there: name the folder that holds the copies with --data-dir")
    return folder


def slug(name: str) -> str:
    """Return a data set's name as a part of a file name: of a folder, its own name without its path."""
    folder = name not in SOURCES and os.path.isdir(_path(name))
    return re.sub(r"[^\w.-]+", "_", _path(name).resolve().name if folder else name)[-60:]


def _path(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # no such user, or no home
        raise InputError(f"'{name}' has no home folder to begin at: give the whole path") from None


@functools.cache
def _folder(folder: Path) -> DataSet:
    return read_folder(folder)
