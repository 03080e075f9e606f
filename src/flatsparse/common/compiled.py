"""Building libraries of C with the machine's compiler, and loading them: only a file that nobody else could have changed."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flatsparse.common.errors import InputError

# No OpenMP library is linked: that which torch has loaded serves, so both share one pool of threads.
FLAGS = ("-O3", "-std=c11", "-fPIC", "-fopenmp")


@dataclass(frozen=True)
class Library:
    """C that is compiled to one shared library, built at its first use on a machine and cached for the user.

    Attributes:
        name: what its files begin with.
        sources: the C files.
        bind: declares the types of the functions of a loaded library; raises AttributeError when it lacks one.
        what: what it is, in messages.
        instead: what to do where it cannot be had, in messages.
        headers: the files that the sources include.
        flags: the compiler's.
    """

    name: str
    sources: tuple[Path, ...]
    bind: Callable[[ctypes.CDLL], None]
    what: str
    instead: str
    headers: tuple[Path, ...] = ()
    flags: tuple[str, ...] = FLAGS

    def load(self) -> ctypes.CDLL:
        """Return the library, loaded; built first where it is not in the cache.

        It is loaded from the cache only where nobody else could have put or changed it, and only while it is what was
        built; else it is built anew, in a folder of this process alone where the cache is not safe.

        Raises: InputError when it cannot be built or loaded.
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
                    f"{self.what} cannot be built here ({_last_line(problem)}): install a C compiler (set CC), or"
                    f" {self.instead}"
                ) from None
            try:
                return self._bound(file)
            except (OSError, AttributeError) as problem:
                raise InputError(
                    f"{self.what} was built but cannot be loaded ({_last_line(problem)}): set XDG_CACHE_HOME to a folder"
                    f" that programs may run from, or {self.instead}"
                ) from None

    def _bound(self, file: Path) -> ctypes.CDLL:
        """The functions of a shared library. Raises: OSError or AttributeError when it is not ours."""
        loaded = ctypes.CDLL(str(file))
        self.bind(loaded)
        return loaded

    def prefix(self) -> str:
        """Return how files of these sources, for this processor, begin; the hash of their content comes after."""
        key = hashlib.sha256(b"".join(file.read_bytes() for file in (*self.sources, *self.headers)))
        key.update(" ".join(self.flags).encode())
        key.update(_processor() if "-march=native" in self.flags else platform.machine().encode())
        return f"{self.name}-{key.hexdigest()[:16]}-"

    def _cached(self, cache: Path) -> Path | None:
        """The shared library that is in the cache already; one that is not what was built is removed."""
        for file in cache.glob(f"{self.prefix()}*"):
            with contextlib.suppress(OSError):
                if _only_ours(file) and file.stem.rpartition("-")[2] == _hash(file):
                    return file
                file.unlink()
        return None

    def _built(self, cache: Path) -> Path:
        """The shared library, compiled into a folder, where it appears when it is whole."""
        compiler = _compiler()
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            parts, whole = [], Path(folder, "whole.so")
            for source in self.sources:
                parts.append(str(Path(folder, f"{source.stem}.o")))
                _run([*compiler, *self.flags, "-c", str(source), "-o", parts[-1]])
            _run([*compiler, "-shared", *parts, "-o", str(whole)])
            whole.chmod(0o700)
            file = cache / f"{self.prefix()}{_hash(whole)}{sysconfig.get_config_var('SHLIB_SUFFIX') or '.so'}"
            whole.replace(file)
        return file


def _compiler() -> list[str]:
    """The command of the C compiler. Raises: OSError when there is none."""
    compiler = (
        shlex.split(os.environ.get("CC", ""))
        or [path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))][:1]
    )
    if not compiler:
        raise OSError("no C compiler")
    return compiler


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)


def _last_line(problem: Exception) -> str:
    text = getattr(problem, "stderr", None) or str(problem)
    return next(reversed(str(text).strip().splitlines()), type(problem).__name__)


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


def _processor() -> bytes:
    """The features of the processor, which -march=native compiles for."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor().encode()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine()).encode()
