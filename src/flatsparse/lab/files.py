"""A folder belongs to one piece of work."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from flatsparse.errors import InputError
from flatsparse.storage import read_json, remove_halves, write_json


def claim(
    out: Path,
    record: str,
    mine: Mapping[str, Any],
    *,
    resume: bool,
    about: Mapping[str, Any] | None = None,
    free: Collection[str] = (),
) -> None:
    """Make a folder the place of one piece of work, or find that it is so already.

    Args:
        out: the folder; it may be absent or empty.
        record: the file in it that says what the work is.
        mine: the settings of the work.
        resume: whether the folder may already hold this very work.
        about: what else to write into a new record.
        free: settings that may differ when work is resumed, because they change no result.

    Raises: InputError for a folder that holds anything else, or cannot be written.
    """
    file = out / record
    plain = json.loads(json.dumps(mine))
    if file.is_file():
        if not resume:
            raise InputError(f"'{out}' already holds such work: give another --out, or --resume to go on with it")
        theirs = read_json(file)["settings"]
        remove_halves(out)
        check_same(plain, theirs, f"'{out}'", free)
        return
    if out.is_dir():
        remove_halves(out)  # a kill may have come while the record itself was written
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"'{out}' exists and holds something else: give another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise InputError(f"cannot write to '{out}' ({problem.strerror}): give another --out") from None
    write_json(file, {"settings": plain, **(about or {})})


def check_same(mine: Mapping[str, Any], theirs: Mapping[str, Any], place: str, free: Collection[str] = ()) -> None:
    """Raise InputError, with the first difference, when what a place holds was made with other settings."""
    plain, theirs = (json.loads(json.dumps(settings)) for settings in (mine, theirs))  # tuples become lists
    odd = next((name for name in plain if name not in free and plain[name] != theirs.get(name)), None)
    if odd is not None:
        flag = f"--{odd.replace('_', '-')}"
        raise InputError(
            f"{place} holds work with {flag} {theirs.get(odd)}, not {plain[odd]}: resume it with its own settings, or give"
            " another --out"
        )
