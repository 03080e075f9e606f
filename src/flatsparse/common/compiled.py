"""Libraries of C, loaded: from the wheel, or built with the machine's compiler and kept where nobody else can change them."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import stat
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flatsparse.common import building
from flatsparse.common.building import last_line
from flatsparse.common.errors import InputError
from flatsparse.common.instructions import choose


@dataclass(frozen=True)
class Library:
    """The C of a folder as a shared library: that of the wheel, or built at its first use and cached for the user.

    Attributes:
        folder: has the C.
        bind: declares the types of the functions of a loaded library; raises AttributeError when it lacks one.
        what: what it is, in messages.
        instead: what to do where it cannot be had, in messages.
    """

    folder: Path
    bind: Callable[[ctypes.CDLL], None]
    what: str
    instead: str

    def load(self) -> ctypes.CDLL:
        """Return the library, loaded, with the best instruction set in use or that of ``FLATSPARSE_INSTRUCTIONS``.

        Raises: InputError when it cannot be built or loaded, or the processor has no such set.
        """
        loaded = self._of_the_wheel() or self._of_this_machine()
        choose(loaded, os.environ.get("FLATSPARSE_INSTRUCTIONS") or None)
        return loaded

    def _of_the_wheel(self) -> ctypes.CDLL | None:
        """The library that a wheel brought; None where none was, or for other C or another system than this."""
        file = building.in_wheel(self.folder)
        try:
            return self._bound(file) if file.is_file() else None
        except (OSError, AttributeError):
            return None

    def _of_this_machine(self) -> ctypes.CDLL:
        """The library that is in the cache, or goes there.

        It is loaded from the cache only where nobody else could have put or changed it, and only while it is what was
        built; else it is built anew, in a folder of this process alone where the cache is not safe.
        """
        with contextlib.ExitStack() as stack:
            cache = _cache() or Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="flatsparse-", ignore_cleanup_errors=True))
            )
            try:
                file = self._cached(cache) or self._built(cache)
                try:
                    return self._bound(file)
                except (OSError, AttributeError):  # what was built elsewhere, such as in a home that machines share
                    file.unlink(missing_ok=True)
                file = self._built(cache)
            except (OSError, subprocess.SubprocessError) as problem:
                raise InputError(
                    f"{self.what} cannot be built here ({last_line(problem)}): install a C compiler (set CC), or"
                    f" {self.instead}"
                ) from None
            try:
                return self._bound(file)
            except (OSError, AttributeError) as problem:
                raise InputError(
                    f"{self.what} was built but cannot be loaded ({last_line(problem)}): set XDG_CACHE_HOME to a folder"
                    f" that programs may run from, or {self.instead}"
                ) from None

    def _bound(self, file: Path) -> ctypes.CDLL:
        """The functions of a shared library. Raises: OSError or AttributeError when it is not ours."""
        loaded = ctypes.CDLL(str(file))
        loaded.flatsparse_use.argtypes, loaded.flatsparse_use.restype = [ctypes.c_int], ctypes.c_int
        self.bind(loaded)
        return loaded

    def _cached(self, cache: Path) -> Path | None:
        """The shared library that is in the cache already; one that is not what was built is removed."""
        for file in cache.glob(f"{building.prefix(self.folder)}-*"):
            with contextlib.suppress(OSError):
                if _only_ours(file) and file.stem.rpartition("-")[2] == _hash(file):
                    return file
                file.unlink()
        return None

    def _built(self, cache: Path) -> Path:
        """The shared library, compiled into a folder, where it appears when it is whole."""
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            whole = Path(folder, "whole.so")
            building.build(self.folder, whole)
            whole.chmod(0o700)
            file = cache / f"{building.prefix(self.folder)}-{_hash(whole)}{building.SUFFIX}"
            whole.replace(file)
        return file


def _cache() -> Path | None:
    """The folder for shared libraries in the user's cache; None where there is none, or others may write to it."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "flatsparse"
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        return cache if _only_ours(cache) and os.access(cache, os.W_OK) else None
    except (OSError, RuntimeError):  # no place of the user's own
        return None


def _only_ours(path: Path) -> bool:
    """Return whether a file or folder is this user's and nobody else may write to it, as far as the system knows users."""
    about = path.lstat()
    if not hasattr(os, "geteuid"):
        return True
    return about.st_uid == os.geteuid() and not stat.S_ISLNK(about.st_mode) and not about.st_mode & 0o022


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
