"""Building the compiled pass with the machine's C compiler, and loading it: only a file that nobody else could have changed."""

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
    """The compiled pass; built at the first call on a machine and cached for the user.

    It is loaded from the cache only where nobody else could have put or changed it, and only while it is what was built;
    else it is built anew, in a folder of this process alone where the cache is not safe.

    Raises: InputError when it cannot be built or loaded.
    """
    with contextlib.ExitStack() as stack:
        cache = _cache() or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="flatsparse-", ignore_cleanup_errors=True))
        )
        try:
            file = _cached(cache) or _built(cache)
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
    text = getattr(problem, "stderr", None) or str(problem)
    return next(reversed(str(text).strip().splitlines()), type(problem).__name__)


def _bound(file: Path) -> ctypes.CDLL:
    """The functions of a shared library. Raises: OSError or AttributeError when it is not ours."""
    loaded = ctypes.CDLL(str(file))
    loaded.flatsparse_square.restype = ctypes.c_double
    loaded.flatsparse_square.argtypes = [ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
    numbers: list[Any] = [*[ctypes.c_float] * 4, ctypes.c_int, ctypes.c_float, ctypes.c_int]
    loaded.flatsparse_step.argtypes = [ctypes.c_int64, *[ctypes.c_void_p] * 5, *numbers]
    loaded.flatsparse_step.restype = None
    return loaded


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


def _name() -> str:
    """The beginning of the name of a shared library for this source and processor; its content's hash comes after."""
    key = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode() + _processor()).hexdigest()[:16]
    return f"step-{key}-"


def _cached(cache: Path) -> Path | None:
    """The shared library that is in the cache already; one that is not what was built is removed."""
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
        or [path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))][:1]
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
    """The features of the processor, which -march=native compiles for."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor().encode()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine()).encode()
