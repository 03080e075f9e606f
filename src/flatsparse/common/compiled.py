"""Libraries of C, loaded: from the wheel, or built with the machine's compiler and kept where nobody else can change them."""

from __future__ import annotations

import contextlib
import ctypes
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
from flatsparse.common.user_cache import user_cache

NOBODY = 65534  # whom the system's own folders seem to belong to in a container without its users


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
        for file in building.built(self.folder, self.folder):
            with contextlib.suppress(OSError, AttributeError):
                if building.is_whole(file):
                    return self._bound(file)
        return None

    def _of_this_machine(self) -> ctypes.CDLL:
        """The library that is in the cache, or goes there.

        It is loaded from the cache only where nobody else could have put or changed it, and only while it is what was
        built; else it is built anew, in a folder of this process alone where the cache is not safe or cannot be written to.
        """
        cache = _cache()
        if cache is not None and (loaded := self._cached(cache)) is not None:
            return loaded
        with contextlib.ExitStack() as stack:
            try:
                if cache is None or not os.access(cache, os.W_OK):
                    alone = tempfile.TemporaryDirectory(prefix="flatsparse-", ignore_cleanup_errors=True)
                    cache = Path(stack.enter_context(alone))
                file = building.build(self.folder, cache)
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

    def _cached(self, cache: Path) -> ctypes.CDLL | None:
        """The library that is in the cache already; one that is not what was built, or not for this machine, is removed."""
        for file in building.built(self.folder, cache):
            with contextlib.suppress(OSError, AttributeError):
                if _only_ours(file) and building.is_whole(file):
                    return self._bound(file)
            with contextlib.suppress(OSError):
                file.unlink()
        return None


def _cache() -> Path | None:
    """The folder for shared libraries in the user's cache; None where there is none, or others may write to it."""
    cache = user_cache()
    if cache is None:
        return None
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        above = cache.parent.resolve()
        return cache if _only_ours(cache) and all(map(_keeps, (above, *above.parents))) else None
    except (OSError, RuntimeError):  # no place of the user's own
        return None


def _only_ours(path: Path) -> bool:
    """Return whether a file or folder is this user's and nobody else may write to it, as far as the system knows users."""
    about = path.lstat()
    if not hasattr(os, "geteuid"):
        return True
    return about.st_uid == os.geteuid() and not stat.S_ISLNK(about.st_mode) and not about.st_mode & 0o022


def _keeps(folder: Path) -> bool:
    """Return whether nobody else can exchange what lies in a folder: this user's or the system's, and sticky if all may write."""
    about = folder.stat()
    if not hasattr(os, "geteuid"):
        return True
    mine = about.st_uid in (os.geteuid(), 0, NOBODY)
    return mine and (not about.st_mode & stat.S_IWOTH or bool(about.st_mode & stat.S_ISVTX))
