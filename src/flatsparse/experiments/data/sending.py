"""Worker processes that read data: how they start, and what is sent to them where they start anew."""

from __future__ import annotations

import pickle
import sys
import warnings
from collections.abc import Iterable, Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from flatsparse.common.errors import InputError
from flatsparse.common.plugins import execute_also, executed_files

# A fork has all that its parent has, at once. Windows has none, and the system's libraries of macOS do not survive one.
START = "fork" if sys.platform == "linux" else "spawn"


class Sent:
    """The base of what goes to another process with objects of a user's file: there the file is run first, then they are read.

    The file is no module that could be imported. What follows in the same message may have objects of it too.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (executed_files(), type(self), bytes(ForkingPickler.dumps(self.__dict__)))


def _received(files: tuple[tuple[Path, str], ...], kind: type, content: bytes) -> Any:
    execute_also(files)
    received: Any = object.__new__(kind)
    received.__dict__.update(pickle.loads(content))
    return received


def started(loader: Iterable[Any], name: str) -> Iterator[Any]:
    """Return the iterator of a loader, whose processes start. Raises InputError when its data cannot be sent to them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch's, of the error that is told here
            return iter(loader)
    except (pickle.PicklingError, AttributeError, TypeError) as problem:
        raise InputError(
            f"'{name}' cannot be sent to the processes that read ahead ({problem}): define its classes and functions outside"
            " of functions, or give --workers 0"
        ) from None
