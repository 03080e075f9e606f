"""JSON files with a checksum: objects whose key ``sha256`` holds the SHA-256 of the rest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flatsparse.common.errors import InputError
from flatsparse.common.files import ANEW, corrupt_file, read, write_atomic
from flatsparse.common.schema import Schema, schema_error


def with_checksum(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its checksum added under ``sha256``."""
    return {**value, "sha256": _digest(value)}


def without_checksum(value: Any, file: Path, cure: str = ANEW) -> dict[str, Any]:
    """A checksummed object without its checksum. Raises InputError when the two do not match."""
    if not isinstance(value, dict) or value.pop("sha256", None) != _digest(value):
        raise corrupt_file(file, "its checksum does not fit", cure)
    return value


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Write an object as indented JSON with its checksum, atomically."""
    write_atomic(file, (json.dumps(with_checksum(value), indent=2, allow_nan=False) + "\n").encode())


def read_json(file: Path, schema: Schema = dict, *, cure: str = ANEW) -> dict[str, Any]:
    """Read a checksummed object.

    Raises: InputError, which says to do what ``cure`` says, when it is corrupt, or not of the schema; see ``schema_error``.
    """
    return _read_object(read(file), file, schema, finite=True, cure=cure)


def read_json_lines(file: Path, schema: Schema = dict) -> list[dict[str, Any]]:
    """Read checksummed objects of a schema, one a line. Raises InputError naming the first corrupt line."""
    lines = read(file).split(b"\n")
    if lines.pop() != b"":
        raise corrupt_file(file, f"its last line, {len(lines) + 1}, is cut off")
    return [_read_object(line, file, schema, where=f"line {number}: ") for number, line in enumerate(lines, 1)]


def _read_object(
    text: bytes, file: Path, schema: Schema, *, where: str = "", finite: bool = False, cure: str = ANEW
) -> dict[str, Any]:
    """Parse and check an object; ``finite`` where it was written without NaN and infinities."""
    try:
        value = without_checksum(json.loads(text), file, cure)
        if finite:
            json.dumps(value, allow_nan=False)
    except InputError:
        raise
    except (ValueError, RecursionError) as problem:
        raise corrupt_file(file, f"{where}{problem}", cure) from None
    if (error := schema_error(value, schema)) is not None:
        raise corrupt_file(file, f"{where}{error}, so it is not of this version", cure)
    return value


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
