"""A finding of the doctor, and the line of a user's code that led to it."""

from __future__ import annotations

import functools
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

OURS = str(Path(__file__).parents[1]) + "/"


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a training loop.

    Attributes:
        name: of the kind of mistake.
        what: what is wrong, in a sentence.
        cure: what to do.
        where: the line of the user's code, as ``file.py:12``; empty where it cannot be told.

    >>> print(Finding("weights-revived", "3 weights outside the masks are not 0", "write weights before optimizer.step()"))
    weights-revived: 3 weights outside the masks are not 0; write weights before optimizer.step()
    """

    name: str
    what: str
    cure: str
    where: str = ""

    def __str__(self) -> str:
        return (f"{self.where}: " if self.where else "") + f"{self.name}: {self.what}; {self.cure}"


def from_message(name: str, message: str, where: str = "") -> Finding:
    """Return the finding of a warning, whose text says first what is wrong and then, after a colon, what to do."""
    text = " ".join(message.split())
    for mark in (": ", "; "):
        what, found, cure = text.rpartition(mark)
        if found:
            return Finding(name, what, cure, where)
    return Finding(name, text, "see the page on loops of your own in the documentation", where)


@functools.cache
def _is_installed(file: str) -> bool:
    """Return whether a file is of torch, of Python or of what is installed, and so not the user's."""
    paths = sysconfig.get_paths()
    folders = [
        str(Path(torch.__file__).parent),
        *(paths[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib")),
    ]
    return file.startswith("<") or any(file.startswith(folder) for folder in folders)


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def users_line() -> str:
    """Return the innermost line of the user's own code that is running, as ``file.py:12``; empty if there is none."""
    for frame in _frames(sys._getframe(1)):
        file = frame.f_code.co_filename
        if not file.startswith(OURS) and not _is_installed(file):
            return f"{Path(file).name}:{frame.f_lineno}"
    return ""


def called_by_us() -> bool:
    """Return whether this package, and not the user's code, calls what is running, apart from the doctor's own files."""
    doctor = str(Path(__file__).parent)
    for frame in _frames(sys._getframe(1)):
        file = frame.f_code.co_filename
        if file.startswith(OURS) and not file.startswith(doctor):
            return True
        if not file.startswith(OURS) and not _is_installed(file):
            return False
    return False


def called_by_user() -> bool:
    """Return whether the user's own code calls the function of torch that is running, and not a trainer that is installed."""
    torchs, paths = str(Path(torch.__file__).parent), sysconfig.get_paths()
    for frame in _frames(sys._getframe(1)):
        file = frame.f_code.co_filename
        if file.startswith((torchs, OURS, "<")):
            continue
        if file.startswith((paths["purelib"], paths["platlib"])):
            return False
        if not file.startswith((paths["stdlib"], paths["platstdlib"])):
            return True
    return False
