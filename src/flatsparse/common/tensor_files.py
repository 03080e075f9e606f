"""Tensor files: safetensors that are equal when their contents are, with the SHA-256 of these in the metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from flatsparse.common.errors import InputError
from flatsparse.common.files import corrupt_file, read, write_atomic


def save_tensors(file: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Write tensors and metadata as safetensors, atomically, with a checksum of both in the metadata.

    Equal contents give equal files. Tensors that share memory, such as tied weights, are written under each of their names.
    """
    plain, memory = {}, set[int]()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if address in memory else tensor  # safetensors refuses those that share
        memory.add(address)
    about = {
        key: text.encode(errors="backslashreplace").decode() for key, text in about.items()
    }  # a path may be no text
    content = safetensors.torch.save(plain, {**about, "sha256": tensor_digest(plain, about)})
    write_atomic(file, _ordered(content))


def _ordered(content: bytes) -> bytes:
    """A safetensors file with sorted metadata; safetensors itself writes them in another order each time."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers stay aligned
    return len(text).to_bytes(8, "little") + text + content[end:]


def load_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata. Raises InputError when the file is corrupt."""
    tensors, about = _parsed(file)
    if "sha256" not in about:
        raise InputError(
            f"'{file}' carries no checksum: it is damaged, or not of ours; give a file that flatsparse wrote"
        )
    return _checked(file, tensors, about)


def load_any_tensors(file: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file of any program; a checksum is checked where there is one.

    Raises: InputError when the file is corrupt.
    """
    tensors, about = _parsed(file)
    return _checked(file, tensors, about)[0] if {"sha256", "format"} <= about.keys() else tensors


def _parsed(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    content = read(file)
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return safetensors.torch.load(content), dict(header.get("__metadata__", {}))
    except (safetensors.SafetensorError, ValueError, AttributeError, TypeError, RecursionError) as problem:
        raise corrupt_file(file, str(problem) or "it is no safetensors file") from None
    except KeyError as kind:
        raise InputError(f"'{file}' holds numbers of the type {kind}, which are not ours: convert it") from None


def _checked(file: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    if about.pop("sha256", None) != tensor_digest(tensors, about):
        raise corrupt_file(file, "its checksum does not fit")
    return tensors, about


def checksum_of(file: Path) -> str:
    """Return the checksum that a tensor file carries; "" for none. Only its header is read, which need not be true."""
    try:
        with safetensors.safe_open(file, "pt") as tensors:
            return (tensors.metadata() or {}).get("sha256", "")
    except (safetensors.SafetensorError, OSError):
        return ""


def _bytes(tensor: Tensor) -> bytes:
    """The memory of a contiguous tensor, in row-major order."""
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def tensor_digest(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """The SHA-256 of the contents of tensors on the CPU and of their metadata, whatever their order."""
    hasher = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        hasher.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        hasher.update(_bytes(tensor))
    return hasher.hexdigest()
