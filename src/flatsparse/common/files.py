"""Whole files: written atomically, so that a reader sees the old content or the new, and read with one-line errors."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from flatsparse.common.errors import InputError

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
    temporary = file.with_name(f".{secrets.token_hex(8)}{TEMPORARY}")
    try:
        # Made as open() makes files, so that the umask decides who may read it; the name is nobody else's.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        with open(descriptor, "wb") as stream:
            stream.write(content)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        os.replace(temporary, file)
    except BaseException as problem:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(problem, OSError):
            raise InputError(
                f"cannot write '{file}' ({problem.strerror}): what was saved before is untouched"
            ) from None
        raise


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
