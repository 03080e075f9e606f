"""Whole files: written atomically, so that a reader sees the old content or the new, and read with one-line errors."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
from pathlib import Path
from typing import Any

from flatsparse.common.errors import InputError

try:
    import fcntl as _fcntl
except ModuleNotFoundError:  # on Windows, where a file that is open can be neither renamed nor removed
    _fcntl = None  # type: ignore[assignment]
fcntl: Any = _fcntl

TEMPORARY = ".half"  # the suffix of files that are being written


ANEW = "restore it from a copy, or delete it and run again"
ELSEWHERE = "restore it from a copy, or begin anew in another folder"  # for a file that says what a folder is


def corrupt_file(file: Path, why: str, cure: str = ANEW) -> InputError:
    """The error for a file whose content is not what was written."""
    return InputError(f"'{file}' is damaged ({why}): {cure}")


def write_atomic(file: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a temporary file in the same folder and rename it, so that neither a reader nor a kill meets half of it.

    Args:
        durable: wait until it is on the disk, so that not even a power cut loses it.

    Raises: InputError when the file cannot be written; what was there before is untouched.
    """
    temporary: Path | None = None
    try:
        descriptor, temporary = _opened(file)
        with open(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
            if fcntl is not None:
                os.replace(temporary, file)  # while it is locked
        if fcntl is None:
            os.replace(temporary, file)
    except BaseException as problem:
        with contextlib.suppress(OSError):
            if temporary is not None:
                os.unlink(temporary)
        if isinstance(problem, OSError):
            raise InputError(
                f"cannot write '{file}' ({problem.strerror}): what was saved before is untouched"
            ) from None
        raise


def _opened(file: Path) -> tuple[int, Path]:
    """Return an empty temporary file for a file, opened, and its path.

    Where there are locks, it has the same name each time, so that what a killed process left is in nobody's way and does not
    add up; and a lock, by which that is told from what another process is writing.
    """
    name = hashlib.sha256(os.fsencode(file.name)).hexdigest()[:16]
    usual = file.with_name(f".{name}{TEMPORARY}")
    while fcntl is not None:
        try:
            descriptor = _created(usual)
        except FileExistsError:
            if _remove_left(usual):
                continue
            break
        if _is_locked(descriptor, usual, without=True):
            return descriptor, usual
        os.close(descriptor)  # another process met it before it was locked, and removes it
    other = file.with_name(f".{secrets.token_hex(8)}{TEMPORARY}")
    return _created(other), other


def _created(file: Path) -> int:
    # Made as open() makes files, so that the umask decides who may read it.
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)


def _remove_left(file: Path) -> bool:
    """Remove a temporary file that no process is writing; return False where one is, or it cannot be removed."""
    try:
        descriptor = os.open(file, os.O_WRONLY)
        try:
            if left := _is_locked(descriptor, file, without=False):
                os.unlink(file)
            return left
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return True
    except OSError:
        return False


def _is_locked(descriptor: int, file: Path, *, without: bool) -> bool:
    """Lock an open file; return whether no other process had, and it is still the one of that name.

    Args:
        without: what to return on a file system that has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return without
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), file.stat())
    return False


def remove_temporary(folder: Path) -> None:
    """Delete the temporary files that a killed process left in a folder."""
    for temporary in folder.glob(f".*{TEMPORARY}"):
        temporary.unlink(missing_ok=True)


def read(file: Path) -> bytes:
    """The content of a file. Raises InputError when it cannot be read, or is none, such as a pipe that nobody writes to."""
    check_is_file(file)
    try:
        return file.read_bytes()
    except OSError as problem:
        raise InputError(f"cannot read '{file}' ({problem.strerror})") from None
    except ValueError:  # a zero byte
        raise InputError(f"'{file}' can be no file's name: give another") from None


def check_is_file(file: Path) -> None:
    """Raise InputError for a pipe or a device, which could keep its reader waiting for ever; what is not there is left to it."""
    try:
        mode = os.stat(file).st_mode
    except (OSError, ValueError):  # a name with a zero byte
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise InputError(f"'{file}' is no file but a pipe or a device: replace it or take it out")
