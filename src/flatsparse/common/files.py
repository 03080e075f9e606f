"""Files that are whole or absent, and say when they are damaged; nothing in them is ever executed.

Each kind of file carries a SHA-256 of its own content: JSON values in a key, safetensors in their metadata, checkpoints
in the comment of their zip archive, where ``torch.load`` passes over it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from flatsparse.common.errors import InputError

MASK_FORMAT = "flatsparse-masks-1"

Form = Any  # of a JSON value, see misfit
POSITIVE = object()  # the form of numbers above 0


def damaged(file: Path, why: str) -> InputError:
    """The error for a file that is not what was written."""
    return InputError(f"'{file}' is damaged ({why}): restore it from a copy, or delete it and run again")


def write_whole(file: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file beside its place and move it there, so that a reader, or a kill, never meets a half of it.

    Args:
        durable: wait until it is on the disk, so that not even a power cut loses it.

    Raises: InputError when the place cannot be written; what stood there before is untouched.
    """
    half = file.with_name(f".{secrets.token_hex(8)}.half")
    try:
        # Made as open() makes files, so that the umask decides who may read it; the name is nobody else's.
        descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        with open(descriptor, "wb") as stream:
            stream.write(content)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        os.replace(half, file)
    except BaseException as problem:
        with contextlib.suppress(OSError):
            os.unlink(half)
        if isinstance(problem, OSError):
            raise InputError(
                f"cannot write '{file}' ({problem.strerror}): what was saved before is untouched"
            ) from None
        raise


def remove_halves(folder: Path) -> None:
    """Clear away what a killed process was writing."""
    for half in folder.glob(".*.half"):
        half.unlink(missing_ok=True)


def read(file: Path) -> bytes:
    """A file's content, or one clear line."""
    try:
        return file.read_bytes()
    except OSError as problem:
        raise InputError(f"cannot read '{file}' ({problem.strerror})") from None


# -- JSON -------------------------------------------------------------------------------------------------------------


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the checksum of the rest of it under ``sha256``."""
    return {**value, "sha256": _digest(value)}


def unsealed(value: Any, file: Path) -> dict[str, Any]:
    """A sealed object without its checksum. Raises InputError when the two do not fit."""
    if not isinstance(value, dict) or value.pop("sha256", None) != _digest(value):
        raise damaged(file, "its checksum does not fit")
    return value


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Write a sealed object as indented JSON, whole."""
    write_whole(file, (json.dumps(sealed(value), indent=2, allow_nan=False) + "\n").encode())


def read_json(file: Path, form: Form = dict) -> dict[str, Any]:
    """Read a sealed object of a form. Raises InputError when it is damaged, or of another form; see ``misfit``."""
    return _read_object(read(file), file, form, finite=True)


def read_json_lines(file: Path, form: Form = dict) -> list[dict[str, Any]]:
    """Read sealed objects of a form, one a line. Raises InputError naming the first damaged line."""
    lines = read(file).split(b"\n")
    if lines.pop() != b"":
        raise damaged(file, f"its last line, {len(lines) + 1}, is cut off")
    return [_read_object(line, file, form, where=f"line {number}: ") for number, line in enumerate(lines, 1)]


def _read_object(text: bytes, file: Path, form: Form, *, where: str = "", finite: bool = False) -> dict[str, Any]:
    """A sealed object; ``finite`` where it was written without NaN and infinities."""
    try:
        value = unsealed(json.loads(text), file)
        if finite:
            json.dumps(value, allow_nan=False)
    except InputError:
        raise
    except (ValueError, RecursionError) as problem:
        raise damaged(file, f"{where}{problem}") from None
    if (odd := misfit(value, form)) is not None:
        raise damaged(file, f"{where}{odd}, so it is not of this version")
    return value


def misfit(value: Any, form: Form, name: str = "it") -> str | None:
    """Tell where a JSON value departs from a form, or None where it does not.

    Ours, because a checksum says that a file is what was written, and not who wrote it. A form is a type (``float`` is any
    number), ``POSITIVE``, None, a set of texts, a tuple of forms of which one must fit, a list of one form for all entries
    or of one for each, or a dict with the forms of keys that must be there; its key ``str`` stands for every other key.

    >>> misfit({"a": [1, "x"]}, {"a": [float]})
    'a[1] is of the wrong kind'
    >>> misfit({}, {"a": int})
    "it has no 'a'"
    """
    wrong = f"{name} is of the wrong kind"
    if isinstance(form, tuple):
        return None if any(misfit(value, one) is None for one in form) else wrong
    if isinstance(form, set):
        return None if isinstance(value, str) and value in form else wrong
    if form is float or form is POSITIVE:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        fits = number and not (isinstance(value, int) and abs(value) > sys.float_info.max)
        return None if fits and (form is float or value > 0) else wrong
    if not isinstance(form, (list, dict)):
        kind = type(None) if form is None else form
        return None if isinstance(value, kind) and (form is bool or not isinstance(value, bool)) else wrong
    if not isinstance(value, type(form)):
        return wrong
    if isinstance(form, list):
        forms = form * len(value) if len(form) == 1 else form
        if len(value) != len(forms):
            return f"{name} has {len(value)} entries, not {len(forms)}"
        parts = [(entry, forms[place], f"{name}[{place}]") for place, entry in enumerate(value)]
    else:
        missing = next((key for key in form if key is not str and key not in value), None)
        if missing is not None:
            return f"{name} has no '{missing}'"
        known = [key for key in value if key in form or str in form]
        parts = [(value[key], form.get(key, form.get(str)), key if name == "it" else f"{name}.{key}") for key in known]
    return next((odd for part in parts if (odd := misfit(*part)) is not None), None)


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# -- tensors ----------------------------------------------------------------------------------------------------------


def save_tensors(file: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Write tensors and metadata as safetensors, whole, with a hash of both among the metadata.

    Equal contents give equal files. Tensors that share memory, such as tied weights, are written under each of their names.
    """
    plain, memory = {}, set[int]()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if address in memory else tensor  # safetensors refuses those that share
        memory.add(address)
    content = safetensors.torch.save(plain, {**about, "sha256": tensor_digest(plain, about)})
    write_whole(file, _ordered(content))


def _ordered(content: bytes) -> bytes:
    """A safetensors file with its metadata sorted: safetensors itself writes them in another order each time."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers stay aligned
    return len(text).to_bytes(8, "little") + text + content[end:]


def load_tensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata. Raises InputError when the file is damaged."""
    content = read(file)
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        tensors, about = safetensors.torch.load(content), dict(header.get("__metadata__", {}))
    except (safetensors.SafetensorError, ValueError, AttributeError, TypeError, RecursionError) as problem:
        raise damaged(file, str(problem) or "it is no safetensors file") from None
    except KeyError as kind:
        raise InputError(f"'{file}' holds numbers of the type {kind}, which are not ours: convert it") from None
    if "sha256" not in about:
        raise InputError(
            f"'{file}' carries no checksum: it is damaged, or not of ours; give a file that flatsparse wrote"
        )
    if about.pop("sha256", None) != tensor_digest(tensors, about):
        raise damaged(file, "its checksum does not fit")
    return tensors, about


def _bytes(tensor: Tensor) -> bytes:
    """The numbers of a contiguous tensor, in row-major order."""
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def tensor_digest(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """The SHA-256 of what tensors on the CPU and their metadata hold, in whatever order."""
    seal = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        seal.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        seal.update(_bytes(tensor))
    return seal.hexdigest()


def save_masks(file: Path, masks: Mapping[str, Tensor], *, method: str = "", step: int = 0) -> None:
    """Write masks as safetensors with one bit a weight.

    Ours: each mask is a ``uint8`` tensor named like its weight, the mask's entries in row-major order, eight to a byte,
    the first in the lowest bit; the metadata hold ``format``, ``method``, ``step``, ``shapes`` (JSON) and a hash.

    Args:
        masks: bool tensors by name, such as ``training.masks``.
        method, step: where they come from.
    """
    packed = {
        name: torch.from_numpy(np.packbits(mask.cpu().contiguous().flatten().numpy(), bitorder="little"))
        for name, mask in masks.items()
    }
    shapes = json.dumps({name: list(mask.shape) for name, mask in masks.items()})
    save_tensors(Path(file), packed, {"format": MASK_FORMAT, "method": method, "step": str(step), "shapes": shapes})


def load_masks(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read masks that ``save_masks`` wrote: bool tensors by name, in their order, and the metadata.

    Raises: InputError when the file is damaged or of another format.
    """
    packed, about = load_tensors(Path(file))
    if about.get("format") != MASK_FORMAT:
        raise InputError(
            f"'{file}' holds '{about.get('format')}', not '{MASK_FORMAT}': give a masks.safetensors of ours"
        )
    masks = {}
    try:
        for name, shape in json.loads(about["shapes"]).items():
            count = int(np.prod(shape))
            if len(packed[name]) != -(-count // 8):
                raise ValueError
            bits = np.unpackbits(packed[name].numpy(), count=count, bitorder="little")
            masks[name] = torch.from_numpy(bits.reshape(shape).astype(bool))
    except (KeyError, ValueError, TypeError, AttributeError):  # others may write such files too
        raise damaged(Path(file), "its shapes are not those of its masks") from None
    return masks, about


# -- checkpoints ------------------------------------------------------------------------------------------------------

_DIGITS = 64  # of a SHA-256 in hexadecimal


def save_state(file: Path, state: Any) -> None:
    """Write nested tensors and plain values as ``torch.save`` does, whole, with a hash in the archive's comment."""
    stream = io.BytesIO()
    torch.save(state, stream)
    body = stream.getvalue()[:-2]  # the archive ends with the length of its comment, which is none
    seal = hashlib.sha256(body).hexdigest().encode()
    write_whole(file, body + _DIGITS.to_bytes(2, "little") + seal)


def load_state(file: Path) -> Any:
    """Read what ``save_state`` wrote, onto the CPU. Raises InputError when the file is damaged."""
    content = read(file)
    body, length, seal = content[: -_DIGITS - 2], content[-_DIGITS - 2 : -_DIGITS], content[-_DIGITS:]
    if int.from_bytes(length, "little") != _DIGITS or hashlib.sha256(body).hexdigest().encode() != seal:
        raise damaged(file, "its checksum does not fit")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise damaged(file, "it holds more than tensors and plain values") from None
    except Exception as problem:  # of whatever kind: torch takes apart what a stranger may have put together
        raise damaged(file, next(iter(str(problem).splitlines()), type(problem).__name__)) from None
