"""Checkpoints: nested tensors and plain values as ``torch.save`` writes them, with a checksum; nothing in them is executed.

The SHA-256 of the zip archive is its comment, where ``torch.load`` passes over it.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import torch

from flatsparse.common.files import corrupt_file, read, write_atomic

_DIGITS = 64  # of a SHA-256 in hexadecimal


def save_state(file: Path, state: Any) -> None:
    """Write nested tensors and plain values atomically; equal states give equal files."""
    stream = io.BytesIO()
    torch.save(state, stream)
    body = stream.getvalue()[:-2]  # the archive ends with the length of its comment, which is none
    checksum = hashlib.sha256(body).hexdigest().encode()
    write_atomic(file, body + _DIGITS.to_bytes(2, "little") + checksum)


def load_state(file: Path) -> Any:
    """Read what ``save_state`` wrote, onto the CPU. Raises InputError when the file is corrupt."""
    content = read(file)
    body, length, checksum = content[: -_DIGITS - 2], content[-_DIGITS - 2 : -_DIGITS], content[-_DIGITS:]
    if int.from_bytes(length, "little") != _DIGITS or hashlib.sha256(body).hexdigest().encode() != checksum:
        raise corrupt_file(file, "its checksum does not fit")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise corrupt_file(file, "it holds more than tensors and plain values") from None
    except Exception as problem:  # of any kind: torch parses a file that may be malformed
        raise corrupt_file(file, next(iter(str(problem).splitlines()), type(problem).__name__)) from None
