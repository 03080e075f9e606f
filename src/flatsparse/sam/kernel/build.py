"""Building the compiled pass with the machine's C compiler, and loading it: only what nobody else could have changed."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from flatsparse.common.errors import InputError

SOURCE = Path(__file__).with_name("step.c")
FLAGS = ("-O3", "-march=native", "-std=c11", "-fPIC", "-fopenmp")


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled pass; built at the first call on a machine and kept in the user's cache.

    What is kept is loaded only where nobody else could have put or changed it, and only as long as it is what was built;
    else it is built anew, in a folder of this process alone where the cache is not safe.

    Raises: InputError when it cannot be built or loaded.
    """
    with contextlib.ExitStack() as held:
        cache = _cache() or Path(
            held.enter_context(tempfile.TemporaryDirectory(prefix="flatsparse-", ignore_cleanup_errors=True))
        )
        try:
            file = _kept(cache) or _built(cache)
            try:
                return _bound(file)
            except (OSError, AttributeError):  # what was built elsewhere, such as in a home that machines share
                file.unlink(missing_ok=True)
            file = _built(cache)
        except (OSError, subprocess.SubprocessError) as problem:
            raise InputError(
                f"the compiled step cannot be built here ({_last_line(problem)}): install a C compiler (set CC), or leave"
                " kernel=True out"
            ) from None
        try:
            return _bound(file)
        except (OSError, AttributeError) as problem:
            raise InputError(
                f"the compiled step was built but cannot be loaded ({_last_line(problem)}): set XDG_CACHE_HOME to a folder"
                " that programs may run from, or leave kernel=True out"
            ) from None


def _last_line(problem: Exception) -> str:
    said = getattr(problem, "stderr", None) or str(problem)
    return next(reversed(str(said).strip().splitlines()), type(problem).__name__)


def _bound(file: Path) -> ctypes.CDLL:
    """The functions of a shared library. Raises: OSError or AttributeError when it is not ours."""
    found = ctypes.CDLL(str(file))
    found.flatsparse_square.restype = ctypes.c_double
    found.flatsparse_square.argtypes = [ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
    numbers: list[Any] = [*[ctypes.c_float] * 4, ctypes.c_int, ctypes.c_float, ctypes.c_int]
    found.flatsparse_step.argtypes = [ctypes.c_int64, *[ctypes.c_void_p] * 5, *numbers]
    found.flatsparse_step.restype = None
    return found


def _cache() -> Path | None:
    """The folder for shared libraries in the user's cache; None where there is none, or others may write to it."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "flatsparse"
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        return cache if _only_ours(cache) and os.access(cache, os.W_OK) else None
    except (OSError, RuntimeError):  # no place of the user's own
        return None


def _only_ours(place: Path) -> bool:
    """Whether a file or folder is this user's and nobody else may write to it, as far as the system knows users."""
    about = place.lstat()
    if not hasattr(os, "geteuid"):
        return True
    return about.st_uid == os.geteuid() and not stat.S_ISLNK(about.st_mode) and not about.st_mode & 0o022


def _name() -> str:
    """What the name of a shared library for this source and processor begins with; its content's hash comes after."""
    key = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode() + _processor()).hexdigest()[:16]
    return f"step-{key}-"


def _kept(cache: Path) -> Path | None:
    """The shared library that is in a folder already; one that is not what was built is removed."""
    for file in cache.glob(f"{_name()}*"):
        with contextlib.suppress(OSError):
            if _only_ours(file) and file.stem.rpartition("-")[2] == _hash(file):
                return file
            file.unlink()
    return None


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _built(cache: Path) -> Path:
    """The shared library, compiled into a folder, where it appears when it is whole."""
    compiler = (
        shlex.split(os.environ.get("CC", ""))
        or [found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))][:1]
    )
    if not compiler:
        raise OSError("no C compiler")
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        part, whole = Path(folder, "step.o"), Path(folder, "step.so")
        # Linked without OpenMP's library: that which torch has loaded serves, so both share one pool of threads.
        for call in ([*FLAGS, "-c", str(SOURCE), "-o", str(part)], ["-shared", str(part), "-o", str(whole)]):
            subprocess.run([*compiler, *call], check=True, capture_output=True, text=True, timeout=120)
        whole.chmod(0o700)
        file = cache / f"{_name()}{_hash(whole)}{sysconfig.get_config_var('SHLIB_SUFFIX') or '.so'}"
        whole.replace(file)
    return file


def _processor() -> bytes:
    """What tells one kind of processor from another, as -march=native does."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor().encode()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine()).encode()
