"""A user's own Python files, which define a method, a recipe, a task or a network."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from flatsparse.common.errors import InputError, described, first_line, nearest
from flatsparse.common.seeds import derive

_EXECUTED: dict[str, tuple[Path, str]] = {}  # by the names of their modules


def name_for(file: Path, kind: str) -> str:
    """The name of a file's module, under which its definitions can be pickled."""
    return f"flatsparse_{kind}_{derive(0, str(file.resolve()))}"


def executed(file: Path, kind: str) -> ModuleType:
    """Run a file as a module. Raises InputError when it does not run."""
    name = name_for(file, kind)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None  # of a .py file there always is one
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        with errors_of(file):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    _EXECUTED[name] = file.resolve(), kind
    return module


def executed_files() -> tuple[tuple[Path, str], ...]:
    """Return the files that this process has run, each with its kind."""
    return tuple(_EXECUTED.values())


def execute_also(files: Iterable[tuple[Path, str]]) -> None:
    """Run files that another process has run, so that what it pickled can be read here; those run before are left."""
    for file, kind in files:
        if name_for(file, kind) not in sys.modules:
            with importable(file.parent):
                executed(file, kind)


def function_of(name: str, kind: str) -> Callable[..., Any]:
    """Return a function by ``path/to/file.py:function``; the file is run. Raises InputError when it is not there."""
    path, _, inner = name.rpartition(":")
    file = Path(path)
    if file.suffix != ".py" or not inner.isidentifier():
        raise InputError(f"--{kind} '{name}' is no function of a file: give path/to/file.py:function")
    if not file.is_file():
        raise InputError(f"no file '{file}' for --{kind} {name}: give the path to a Python file")
    with importable(file.resolve().parent):
        module = executed(file, kind)
    function = getattr(module, inner, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InputError(f"'{file}' has no function '{inner}' ({nearest(inner, known)})")
    return function  # type: ignore[no-any-return]  # callable is all that is known


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    """A context in which the modules of a folder can be imported, as when a file of it is run."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@contextlib.contextmanager
def errors_of(file: Path) -> Iterator[None]:
    """A context for running a file's code: any error in it, and an exit, becomes an InputError of one line."""
    try:
        yield
    except KeyboardInterrupt:  # the user's, not the file's
        raise
    except BaseException as problem:
        if isinstance(problem, InputError) and first_line(problem):  # it says what is wrong already
            raise
        lines = [frame.lineno for frame in traceback.extract_tb(problem.__traceback__) if _is(frame.filename, file)]
        where = f" (line {lines[-1]})" if lines else ""
        raise InputError(f"'{file}' does not run: {described(problem)}{where}") from problem


def _is(name: str, file: Path) -> bool:
    return Path(name).name == file.name and Path(name).resolve() == file.resolve()
