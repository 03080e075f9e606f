"""Pieces of measurements: files that hold their own names, which say what they are of, so that none is taken for another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from flatsparse.common.files import corrupt_file
from flatsparse.common.json_files import read_json, write_json
from flatsparse.common.schema import NotRequired
from flatsparse.common.tensor_files import load_tensors, save_tensors

OF = "piece"  # the key of a piece's name, which older ones lack


def save_piece(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as a piece."""
    save_tensors(file, tensors, {OF: file.stem})


def load_piece(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a piece. Raises InputError when it is damaged, or another one."""
    tensors, about = load_tensors(file)
    _check(file, about.get(OF, file.stem))
    return tensors


def write_piece(file: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object as a piece."""
    write_json(file, {**value, OF: file.stem})


def read_piece(file: Path, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON object of a piece. Raises InputError when it is damaged, of another form, or another piece."""
    value = read_json(file, {**schema, OF: NotRequired(str)})
    _check(file, value.pop(OF, file.stem))
    return value


def _check(file: Path, name: str) -> None:
    if name != file.stem:
        raise corrupt_file(file, f"it holds the piece {name}")
