"""A user's own Python files, which define a method or a recipe."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from flatsparse.common.errors import InputError
from flatsparse.common.seeds import derive


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
    return module


@contextlib.contextmanager
def errors_of(file: Path) -> Iterator[None]:
    """A context for running a file's code: any error in it, and an exit, becomes an InputError of one line."""
    try:
        yield
    except (InputError, KeyboardInterrupt):  # one line already; the user's, not the file's
        raise
    except BaseException as problem:
        reason = " ".join([f"{type(problem).__name__}:", *str(problem).splitlines()[:1]])
        raise InputError(f"'{file}' does not run: {reason}") from problem
