"""Packages of extras: imported when they are needed, and kept quiet."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from flatsparse.common.errors import InputError


def needed(module: str, extra: str) -> Any:
    """Import a module of an extra. Raises InputError without it, and where it does not load, as beside another torch."""
    cure = f"pip install 'flatsparse[{extra}]'"
    try:
        with quiet():
            return importlib.import_module(module)
    except ModuleNotFoundError as problem:
        what = (problem.name or module).partition(".")[0]
        raise InputError(f"this export needs '{what}': install it with {cure}") from None
    except (ImportError, OSError) as problem:
        raise InputError(
            f"this export needs '{module}', which does not load here ({reason(problem)}): it may be of another version than"
            f" torch; install both anew with {cure}"
        ) from None


def reason(problem: BaseException) -> str:
    """Return the first line of an error's text that says something, at most 200 characters, or else the error's kind."""
    lines = (line.strip() for line in str(problem).splitlines())
    return next((line for line in lines if any(map(str.isalpha, line))), type(problem).__name__)[:200]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """A context without the warnings, the log and the prints of Python packages."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextlib.contextmanager
def c_quiet() -> Iterator[None]:
    """A context without what libraries of C print to the process's standard streams."""
    nowhere, kept = os.open(os.devnull, os.O_WRONLY), {}
    try:
        _flush()
        for stream in (1, 2):
            with contextlib.suppress(OSError):  # it is closed
                kept[stream] = os.dup(stream)
                os.dup2(nowhere, stream)
        yield
    finally:
        _flush()
        for stream, copy in kept.items():
            os.dup2(copy, stream)
            os.close(copy)
        os.close(nowhere)


def _flush() -> None:
    """Write what Python and C have kept of the standard streams to where these lead now."""
    for stream in (sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # of one that is closed, and of none
            stream.flush()  # type: ignore[union-attr]
    with contextlib.suppress(AttributeError):  # Python's own library brings no C library's function on Windows
        ctypes.pythonapi.fflush(None)
