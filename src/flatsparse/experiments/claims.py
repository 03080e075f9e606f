"""Claims and locks of folders: each holds one piece of work, and one process at a time works in it."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import lock_descriptor

from flatsparse.common.errors import InputError
from flatsparse.common.files import ELSEWHERE, remove_temporary
from flatsparse.common.json_files import read_json, write_json

LOCK = ".lock"
WORDS = {"init_sha256": "an --init whose SHA-256 is"}  # settings that are no options
_held: set[Any] = set()  # the open files of this process's locks


class Busy(InputError):
    """Another process is working in the folder."""


class NoLocks(InputError):
    """The file system has no locks."""


@contextlib.contextmanager
def locked(file: Path, *, keep: bool = False) -> Iterator[bool]:
    """A context with a lock: True if this process holds it. The system releases it when the process ends, however it ends.

    It is this process's alone: those that it forks, to read data, may outlive it for some seconds.

    Args:
        file: an empty file that stands for the lock; it is created if missing, and its folder must exist.
        keep: leave the file there.

    Raises: NoLocks on a file system that has none, OSError where the file cannot be made.
    """
    while True:
        stream = file.open("a", encoding="utf-8")  # for writing: network file systems lock nothing else
        try:
            # The system's own lock, on an open file: a class of filelock may fall back to one that outlives its process.
            got = lock_descriptor(stream.fileno(), blocking=False)
        except OSError as problem:
            stream.close()
            raise NoLocks(
                f"'{file.parent}' is on a file system without locks ({problem.strerror}): give another --out"
            ) from None
        if not got:
            stream.close()
            yield False
            return
        if _is_at(stream.fileno(), file):
            break
        stream.close()  # its last holder removed it between our two calls
    _held.add(stream)
    try:
        yield True
    finally:
        _held.discard(stream)
        # Removed while it is held, so that no other process meets the name of a lock that is nobody's.
        open_too_long = not keep and not _remove(file)
        stream.close()
        if open_too_long:  # Windows removes no file that is open, so that it cannot be another's that goes now
            _remove(file)


def _close_held() -> None:
    for stream in _held:
        stream.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_held)


def _remove(file: Path) -> bool:
    """Remove a file if that can be done; return False if it is not permitted."""
    try:
        file.unlink()
    except PermissionError:
        return False
    except OSError:
        pass
    return True


def _is_at(descriptor: int, file: Path) -> bool:
    """Return if an open file is still the one of that name."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), file.stat())
    return False


@contextlib.contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """A context in which a folder, made where there is none, is locked for this process; without locks it is open to all.

    Raises: Busy when another process is at work in it, InputError when nothing can be written there.
    """
    with contextlib.ExitStack() as held:
        try:
            out.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(NoLocks):
                if not held.enter_context(locked(out / LOCK)):
                    raise Busy(f"another process is at work in '{out}': wait for it, or give another --out")
        except FileExistsError:
            raise InputError(f"'{out}' exists and is no folder: give another --out") from None
        except OSError as problem:
            raise InputError(f"cannot write to '{out}' ({problem.strerror}): give another --out") from None
        yield


def in_use(out: Path) -> bool:
    """Return if a folder holds anything but its lock."""
    return any(file.name != LOCK for file in out.iterdir())


def plain_name(text: str) -> str:
    """Return a text as the name of a file or folder on any system: names of data sets and methods may be paths.

    >>> plain_name("C:/my data?"), plain_name("con.txt"), plain_name("v1.")
    ('C_my_data_', 'con_txt', 'v1')
    """
    name = re.sub(r"[^\w.-]+", "_", text)[-150:].rstrip(".")  # Windows takes no dot at the end
    name = name.encode()[-200:].decode(
        errors="ignore"
    )  # a name has 255 bytes at most, and others are put behind this one
    return re.sub(r"^(con|prn|aux|nul|com\d|lpt\d)(\.|$)", r"\1_", name, flags=re.IGNORECASE)  # its devices


@contextlib.contextmanager
def claim(
    out: Path,
    record: str,
    settings: Mapping[str, Any],
    *,
    resume: bool,
    about: Mapping[str, Any] | None = None,
    free: Collection[str] = (),
) -> Iterator[None]:
    """A context in which a folder is claimed for one piece of work, and locked; a folder that has a claim must be of the same.

    Args:
        out: the folder; it may be absent or empty.
        record: the file in it that describes the work.
        settings: of the work.
        resume: the folder may already hold this very work.
        about: other entries of a new record.
        free: settings that may differ when work is resumed, because they change no result.

    Raises: InputError for a folder that holds anything else, that another process is at work in, or that cannot be written.
    """
    file = out / record
    plain = json.loads(json.dumps(settings))
    with alone_in(out):
        remove_temporary(out)  # a kill may have come while the record itself was written
        if not file.is_file():
            if in_use(out):
                raise InputError(f"'{out}' exists and holds something else: give another --out")
            write_json(file, {"settings": plain, **(about or {})})
        elif not resume:
            raise InputError(f"'{out}' already holds such work: give another --out, or --resume to continue it")
        else:
            check_same(plain, read_json(file, {"settings": dict}, cure=ELSEWHERE)["settings"], f"'{out}'", free)
        yield


def check_same(
    settings: Mapping[str, Any], recorded: Mapping[str, Any], origin: str, free: Collection[str] = ()
) -> None:
    """Raise InputError, with the first difference, when recorded settings differ; ``origin`` is where they are recorded.

    A setting that the record does not have is younger than it, and was off.
    """
    plain, recorded = (json.loads(json.dumps(one)) for one in (settings, recorded))  # tuples become lists
    names = sorted(plain, key=lambda name: name != "task")  # which decides others, such as the model
    same = {name: plain[name] == recorded[name] if name in recorded else not plain[name] for name in names}
    odd = next((name for name in names if name not in free and not same[name]), None)
    if odd is not None:
        flag = WORDS.get(odd, f"--{odd.replace('_', '-')}")
        raise InputError(
            f"{origin} holds work with {flag} {recorded.get(odd)}, not {plain[odd]}: resume it with its own settings, or give"
            " another --out"
        )
