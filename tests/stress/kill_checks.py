"""What a killed command may leave: whole files, and in the end the very ones that an undisturbed command leaves."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from flatsparse.common.checkpoints import load_state
from flatsparse.common.errors import InputError
from flatsparse.common.json_files import read_json, read_json_lines
from flatsparse.common.tensor_files import load_tensors
from tests.stress.kill_cases import Case
from tests.stress.killing import Fault

TIMES = {
    *("seconds", "images_per_second", "step_seconds", "step_time", "step_times", "step_median", "when"),
    *("inference", "training", "sha256"),  # of exports, which are timed
}
ENDS = {".png": b"IEND\xaeB`\x82", ".html": b"</html>"}


def read_whole(file: Path) -> Any:
    """Return what a file holds, without times. Raises Fault, or InputError, for half a file."""
    content = file.read_bytes()
    if file.suffix == ".json":
        return _plain(read_json(file))
    if file.suffix == ".jsonl":
        return _plain(read_json_lines(file))
    if file.suffix == ".safetensors":
        return _plain(load_tensors(file))
    if file.suffix == ".pt":
        return _plain(load_state(file), {"seconds", "step_seconds", "images_per_second"})
    if file.suffix in ENDS:
        if not content.rstrip().endswith(ENDS[file.suffix]):
            raise Fault(f"'{file}' is half a file")
        return None
    return hashlib.sha256(content).hexdigest()


def _plain(value: Any, times: set[str] = TIMES) -> Any:
    if isinstance(value, torch.Tensor):
        bits = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return str(value.dtype), tuple(value.shape), hashlib.sha256(bits).hexdigest()
    if isinstance(value, Mapping):
        return {str(name): _plain(part, times) for name, part in value.items() if name not in times}
    if isinstance(value, (list, tuple)):
        return [_plain(part, times) for part in value]
    return repr(value)


def files(out: Path) -> list[Path]:
    """Return the files below a folder that stand under their own names."""
    found = (file for file in sorted(out.rglob("*")) if file.is_file())
    return [file for file in found if not any(part.startswith(".") for part in file.relative_to(out).parts)]


@dataclass
class Folder:
    """The folder that a killed command writes, and what must be there for good."""

    out: Path
    name: str
    kept: dict[Path, tuple[int, int]] = field(default_factory=dict)

    def check(self) -> None:
        """Raise Fault for half a file, and for a finished run or measurement that is gone or was made again."""
        for file, was in self.kept.items():
            if not file.is_file() or _identity(file) != was:
                raise Fault(f"{self.name}: '{file}' was finished, and is gone or written again")
        for file in files(self.out) if self.out.is_dir() else []:
            try:
                read_whole(file)
            except FileNotFoundError:  # by a process that has not noticed yet that its parent is gone
                continue
            except (Fault, InputError) as problem:
                raise Fault(f"{self.name}: half a file: {problem}") from None
            if file.name == "result.json" or file.parent.name in ("pieces", "parents"):
                self.kept[file] = _identity(file)


def _identity(file: Path) -> tuple[int, int]:
    about = file.stat()
    return about.st_ino, about.st_mtime_ns


def check_equal(case: Case, whole: Path, killed: Path) -> None:
    """Raise Fault where two folders differ in more than times, or hold what is temporary."""
    contents = []
    for root in (whole, killed):
        left = [str(file) for file in root.rglob("*") if file.name.startswith((".", "tmp"))]
        if left:
            raise Fault(f"{case}: it left {left}")
        contents.append({str(file.relative_to(root)): read_whole(file) for file in files(root / "out")})
    ours, theirs = contents[1], contents[0]
    if ours.keys() != theirs.keys():
        raise Fault(f"{case}: its files differ: {sorted(ours.keys() ^ theirs.keys())}")
    for name, content in theirs.items():
        if ours[name] != content:
            raise Fault(f"{case}: '{name}' differs: {_difference(ours[name], content)}")


def _difference(a: Any, b: Any, path: str = "") -> str:
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return next(_difference(a[k], b[k], f"{path}/{k}") for k in a if a[k] != b[k])
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return next(_difference(x, y, f"{path}/{n}") for n, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
    return f"{path}: {str(a)[:300]}, not {str(b)[:300]}"
