"""Ways to damage a file: bytes that are lost or other, and records of another form with a checksum that fits."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from flatsparse.common.checkpoints import load_state, save_state
from flatsparse.common.json_files import with_checksum
from flatsparse.common.tensor_files import load_tensors, save_tensors

ODD: list[Any] = [None, True, -1, 10**30, 1.5, "", "x", [], {}, [[]], {"x": {"x": []}}]


def kind_of(file: Path) -> str:
    """Return the name of a file without the hash that tells it from its like, as pieces have."""
    return re.sub(r"[0-9a-f]{16}(-\d+)?", "", file.name)


def truncate(content: bytes, source: random.Random) -> bytes:
    return content[: source.randrange(len(content))]


def flip(content: bytes, source: random.Random) -> bytes:
    spoilt = bytearray(content)
    for place in source.sample(range(len(spoilt)), min(source.randint(1, 8), len(spoilt))):
        spoilt[place] ^= 1 << source.randrange(8)
    return bytes(spoilt)


def zero(content: bytes, source: random.Random) -> bytes:
    start, length = source.randrange(len(content)), source.choice((1, 16, 512, 4096))
    return content[:start] + bytes(len(content[start : start + length])) + content[start + length :]


def empty(content: bytes, source: random.Random) -> bytes:
    return b""


def cut_at_a_line_s_end(content: bytes, source: random.Random) -> bytes:
    ends = [place + 1 for place, byte in enumerate(content[:-1]) if byte == 10]
    return content[: source.choice([0, *ends])]


def reshaped(value: Any, source: random.Random) -> Any:
    """Return a nested value with one part of another kind, missing, or nested deeply."""
    if isinstance(value, (dict, list)) and value and source.random() < 0.8:
        copy = dict(value) if isinstance(value, dict) else list(value)
        key = source.choice(list(copy) if isinstance(copy, dict) else range(len(copy)))
        if source.random() < 0.25:
            del copy[key]
        else:
            copy[key] = reshaped(copy[key], source)
        return copy
    if source.random() < 0.1:
        return _deep(source.choice((5, 100, 400)))
    return source.choice([odd for odd in ODD if type(odd) is not type(value)])


def _deep(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def reshape_json(file: Path, source: random.Random) -> None:
    """Write an object of another shape with a checksum that fits."""
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    chosen = source.randrange(len(lines))
    value = json.loads(lines[chosen])
    value.pop("sha256", None)
    value = reshaped(value, source)
    lines[chosen] = json.dumps(with_checksum(value) if isinstance(value, dict) else value)
    if source.random() < 0.05:  # deeper than any parser goes
        lines[chosen] = '{"x": ' + "[" * 5000 + "]" * 5000 + "}"
    file.write_text("\n".join(lines) + "\n")


def reshape_tensors(file: Path, source: random.Random) -> None:
    """Write other tensors, or other metadata, with a checksum that fits."""
    tensors, about = load_tensors(file)
    if about and source.random() < 0.5:
        key = source.choice(list(about))
        about[key] = source.choice(["", "x", "[]", "{}", "null", json.dumps({key: _deep(3)}), "[" * 3000 + "]" * 3000])
        if source.random() < 0.3:
            del about[key]
    else:
        name = source.choice(list(tensors))
        whole = tensors.pop(name)
        other = [
            None,
            whole[:0] if whole.ndim else whole[None],
            whole.flatten()[:1],
            whole.to(torch.int64),
            whole[None],
        ]
        if (new := source.choice(other)) is not None:
            tensors[name] = new.contiguous()
    save_tensors(file, tensors, about)


def reshape_state(file: Path, source: random.Random) -> None:
    """Write a checkpoint that lacks a part, or has records of another form; what its tensors hold only a checksum can know."""
    state = load_state(file)
    part = source.choice(list(state))
    if part in ("progress", "settings"):
        state[part] = reshaped(state[part], source)
    elif source.random() < 0.5:
        del state[part]
    else:
        state[part] = source.choice(ODD)
    save_state(file, state)


BYTES: list[Callable[[bytes, random.Random], bytes]] = [truncate, truncate, flip, flip, zero, empty]
RESHAPE = {".json": reshape_json, ".jsonl": reshape_json, ".safetensors": reshape_tensors, ".pt": reshape_state}


def damage(file: Path, files: Sequence[Path], source: random.Random) -> tuple[str, list[Path]]:
    """Damage a file; return how, and the files that are no longer what they were. No file is what it was by chance."""
    whole = file.read_bytes()
    twins = [f for f in files if kind_of(f) == kind_of(file) and f != file and f.read_bytes() != whole]
    kinds: list[Any] = [*BYTES, *([cut_at_a_line_s_end] * 2 if file.suffix == ".jsonl" else [])]
    kinds += [RESHAPE[file.suffix]] * 3 if file.suffix in RESHAPE else []
    kinds += ["swap"] * 2 if twins else []
    while True:
        kind = source.choice(kinds)
        if kind == "swap":
            twin = source.choice(twins)
            file.write_bytes(twin.read_bytes())
            twin.write_bytes(whole)
            return f"swap with {twin}", [file, twin]
        if kind in RESHAPE.values():
            kind(file, source)
        else:
            file.write_bytes(kind(whole, source))
        if file.read_bytes() != whole:
            return kind.__name__, [file]
