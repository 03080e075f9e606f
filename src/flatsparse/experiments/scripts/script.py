"""A user's training function: the file that holds it, and how it is called."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from flatsparse.common.errors import InputError
from flatsparse.common.files import read
from flatsparse.common.plugins import executed, importable, name_for
from flatsparse.experiments.data.loading import generators_kept

Train = Callable[[Any], Any]
WANTED = "give FILE.py:FUNCTION, a function of one argument, the arm, that returns a dict of floats"
_files: list[str] = []  # those whose functions are being run in this process


@dataclass(frozen=True)
class Script:
    """A function in a file.

    Attributes:
        file: a whole path.
        function: its name there.
        sha256: of the file's content, which must stay as it is.
    """

    file: Path
    function: str
    sha256: str

    @classmethod
    def named(cls, text: str) -> Script:
        """Return the script of ``FILE.py:FUNCTION``. Raises InputError for anything else, and a file that is not there."""
        file, by_file, function = text.rpartition(".py:")
        if not by_file or not function:
            raise InputError(f"script '{text}' is no function of a file: {WANTED}")
        path = Path(f"{file}.py")
        if not path.is_file():
            raise InputError(f"no file '{path}' for script '{text}': {WANTED}")
        return cls(path.resolve(), function, hashlib.sha256(read(path)).hexdigest())

    @property
    def name(self) -> str:
        """The file's name and the function's."""
        return f"{self.file.name}:{self.function}"

    @contextlib.contextmanager
    def loaded(self) -> Iterator[Train]:
        """A context with the function, in which its file's folder can be imported from.

        The file is run anew each time, with the modules beside it, so that no arm sees what another has left in their
        variables, and with seed 0, so that what they draw themselves is the same for all.

        Raises: InputError for a file that does not run, has changed, or has no such function.
        """
        if hashlib.sha256(read(self.file)).hexdigest() != self.sha256:
            raise InputError(f"'{self.file}' has changed since the comparison began: start it anew, with another --out")
        with running(str(self.file)), importable(self.file.parent), _forgotten(self.file):
            with seeded(0):
                module = executed(self.file, "script")
            function = getattr(module, self.function, None)
            if not callable(function):
                there = [
                    n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__
                ]
                raise InputError(
                    f"'{self.file}' has no function '{self.function}' (it has: {', '.join(there) or 'none'}): {WANTED}"
                )
            yield function


@dataclass(frozen=True)
class Function:
    """A function that is in no file, such as one of a notebook; it can only be called in this process."""

    train: Train
    sha256: str

    @property
    def name(self) -> str:
        """The function's name."""
        return getattr(self.train, "__qualname__", repr(self.train))

    @contextlib.contextmanager
    def loaded(self) -> Iterator[Train]:
        """A context with the function."""
        with running(self.name):
            yield self.train


def script_of(train: Train | str, *, in_process: bool) -> Script | Function:
    """Return the script of a function, or of ``"FILE.py:FUNCTION"``.

    Args:
        in_process: a function without a file will do.

    Raises: InputError for a function that another process could not find, unless none has to.
    """
    if isinstance(train, str):
        return Script.named(train)
    if not callable(train):
        raise InputError(
            f"train is {type(train).__name__}: give a function of one argument, the arm, or 'FILE.py:FUNCTION'"
        )
    file = _file_of(train)
    if file is not None:
        return Script.named(f"{file}:{getattr(train, '__name__', '')}")
    if not in_process:
        raise InputError(
            f"'{getattr(train, '__qualname__', train)}' is no function at the top of a file, so other processes cannot find it:"
            " give jobs=1, or put it there"
        )
    return Function(train, hashlib.sha256(_source(train)).hexdigest())


def _file_of(train: Train) -> Path | None:
    """The file at whose top a function is found by its name."""
    name, module = getattr(train, "__name__", ""), sys.modules.get(getattr(train, "__module__", None) or "")
    file = Path(getattr(module, "__file__", None) or "")
    return file if getattr(module, name, None) is train and file.suffix == ".py" and file.is_file() else None


def _source(train: Train) -> bytes:
    """The text of a function, or where there is none, its code."""
    try:
        return inspect.getsource(train).encode()
    except (TypeError, OSError):
        code = getattr(train, "__code__", None)
        return repr(train if code is None else (code.co_code, code.co_consts, code.co_names)).encode()


@contextlib.contextmanager
def running(file: str) -> Iterator[None]:
    """A context in which a script is run, which must not start a comparison itself."""
    _files.append(file)
    try:
        yield
    finally:
        _files.pop()


def check_outermost() -> None:
    """Raise InputError where a comparison is started by a script that is run by one."""
    if _files:
        raise InputError(
            f"'{_files[-1]}' starts a comparison when it is imported, and every arm imports it: put that call under"
            ' if __name__ == "__main__":'
        )


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A context that starts with torch, numpy and ``random`` seeded, and after which they are where they were."""
    with generators_kept():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield


@contextlib.contextmanager
def _forgotten(script: Path) -> Iterator[None]:
    """A context after which the modules beside a script that were imported in it are forgotten."""
    folder, before = script.parent, {*sys.modules, name_for(script, "script")}
    try:
        yield
    finally:
        theirs = {name for name in set(sys.modules) - before if "." not in name and _lies_in(folder, sys.modules[name])}
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in theirs:
                del sys.modules[name]


def _lies_in(folder: Path, module: ModuleType) -> bool:
    """Return whether a module is a file of a folder, or a package in it, but not of what is installed below it."""
    places = getattr(module, "__path__", None) or [getattr(module, "__file__", None) or ""]
    return any(Path(place).parent == folder for place in places)
