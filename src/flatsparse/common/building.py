"""What a library of C is made of, and how it is compiled. hatch_build.py runs this file alone, so it imports nothing of ours.

Every folder of the package with C in it becomes one library, together with the C of ``common/c``; a file
``flags.txt`` there adds flags of the compiler.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
SHARED = Path(__file__).with_name("c")
SUFFIX = ".dll" if os.name == "nt" else ".so"  # also on macOS; to ask sysconfig takes longer than all other imports

# What a wheel holds runs on any processor of its kind: the C itself chooses instructions when it runs. Roots have no errno, so
# that there are roots of vectors. No OpenMP library is linked: that which torch has loaded serves, so both share one pool of
# threads. Apple's compiler has no -fopenmp: one thread.
FLAGS = (
    *("-O3", "-std=c11", "-fPIC", "-ffp-contract=off", "-fno-math-errno"),
    *(() if sys.platform == "darwin" else ("-fopenmp",)),
)


def libraries() -> list[Path]:
    """Return the folders of which each becomes a library."""
    return sorted({source.parent for source in PACKAGE.rglob("*.c")} - {SHARED})


def prefix(folder: Path) -> str:
    """Return how files built from a folder's C as it is, for this kind of processor, begin; their own ending comes after."""
    key = hashlib.sha256(b"".join(file.read_bytes() for file in _files(folder, "*.[ch]")))
    key.update(" ".join(_flags(folder)).encode())
    key.update(platform.machine().encode())
    return f"{folder.name}-{key.hexdigest()[:16]}"


def built(folder: Path, place: Path) -> list[Path]:
    """Return the files in a place that are called as the library of a folder's C as it is, for this kind of processor."""
    return sorted(place.glob(f"{prefix(folder)}-*"))


def is_whole(file: Path) -> bool:
    """Return whether a library is what was built, by the hash in its name; to load one that is cut off kills the process.

    Raises: OSError when it cannot be read.
    """
    return file.stem.rpartition("-")[2] == _hash(file)


def build(folder: Path, place: Path) -> Path:
    """Compile the library of a folder into a place, where it appears when it is whole, and return its file.

    Raises: OSError or subprocess.SubprocessError when that fails.
    """
    compiler = _compiler()
    with tempfile.TemporaryDirectory(dir=place) as objects:
        parts = []
        for source in _files(folder, "*.c"):
            parts.append(str(Path(objects, f"{source.stem}.o")))
            _run([*compiler, *_flags(folder), f"-I{SHARED}", f"-I{folder}", "-c", str(source), "-o", parts[-1]])
        whole = Path(objects, f"whole{SUFFIX}")
        _run([*compiler, "-shared", *parts, "-o", str(whole)])
        whole.chmod(0o755)
        file = place / f"{prefix(folder)}-{_hash(whole)}{SUFFIX}"
        whole.replace(file)
    return file


def last_line(problem: Exception) -> str:
    """Return the last line of what a compiler or the system said."""
    said = str(getattr(problem, "stderr", None) or "").strip()
    if not said and isinstance(problem, subprocess.CalledProcessError):
        return f"{problem.cmd[0]} ended with {problem.returncode}"
    return next(reversed((said or str(problem)).splitlines()), type(problem).__name__)


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _flags(folder: Path) -> list[str]:
    own = folder / "flags.txt"
    return [*FLAGS, *(own.read_text(encoding="utf-8").split() if own.is_file() else [])]


def _files(folder: Path, pattern: str) -> list[Path]:
    return [*sorted(folder.glob(pattern)), *sorted(SHARED.glob(pattern))]


def _compiler() -> list[str]:
    """The command of the C compiler. Raises: OSError when there is none."""
    compiler = (
        shlex.split(os.environ.get("CC", ""), posix=os.name == "posix")  # paths of Windows have backslashes
        or [path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))][:1]
    )
    if not compiler:
        raise OSError("no C compiler")
    return compiler


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, encoding="utf-8", errors="replace", timeout=120)
