"""Files that appear under their name only when they are whole."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import IO, Any

import safetensors.torch
from torch import Tensor

from flatsparse.errors import InputError


def write_whole(file: Path, content: str | bytes | Callable[[IO[bytes]], object]) -> None:
    """Write a file beside its place and move it there, so that a reader, or a kill, never meets a half of it."""
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", delete=False) as half:
        try:
            if callable(content):
                content(half)
            else:
                half.write(content.encode() if isinstance(content, str) else content)
            half.flush()
            os.fsync(half.fileno())
            os.chmod(half.name, 0o644)  # what open() gives; a temporary file is private
            os.replace(half.name, file)
        except BaseException:
            os.unlink(half.name)
            raise


def write_json(file: Path, value: Any) -> None:
    """Write a value as indented JSON, whole."""
    write_whole(file, json.dumps(value, indent=2) + "\n")


def save_tensors(file: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Write tensors and their metadata as safetensors, whole."""
    write_whole(file, safetensors.torch.save(dict(tensors), metadata=dict(about)))


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
        theirs = json.loads(file.read_text())["settings"]
        odd = next((name for name in plain if name not in free and plain[name] != theirs.get(name)), None)
        if odd is not None:
            flag = f"--{odd.replace('_', '-')}"
            raise InputError(
                f"'{out}' holds work with {flag} {theirs.get(odd)}, not {plain[odd]}: resume it with its own settings,"
                " or give another --out"
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"'{out}' exists and holds something else: give another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(file, {"settings": plain, **(about or {})})
    except OSError as problem:
        raise InputError(f"cannot write to '{out}' ({problem.strerror}): give another --out") from None
