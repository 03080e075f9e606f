"""Writes the set of files that a release keeps, before its tag: ``python -m tests.kept.write VERSION``, from the root.

The set is what ``tests/stress/written.py`` makes and what its readers say of it, packed without pictures, pages, checkpoints of
finished runs, weights of compared ones, and the store, whose checkpoints are large. ``tests/test_kept_sets.py`` reads every set
with the code of today.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from tests.folders import inside
from tests.stress.written import REST, RUN_PARTS, Part, make_rest, make_runs, plain

KEPT = Path(__file__).parent
FOLDERS = ("runs", "stopped", "plain", "compared", "arms", "surfaces", "changed", "corrupted", "recipes", "exported")
WITHOUT_WEIGHTS = ("compared", "recipes")
LEFT_OUT = (".png", ".html", ".svg")
COMPUTED = ("stopped runs resumed", "exports read", "export repeated")  # anew, and so in other bits elsewhere
PARTS = {part.name: part for part in (*RUN_PARTS, *REST) if part.folder in FOLDERS and part.name != "recipe run again"}
MOST = 150_000  # bytes of a file


def said(part: Part) -> Any:
    """What a reader says, as JSON has it."""
    return json.loads(json.dumps(plain(part.read())).replace(str(Path.cwd()), "."))


def pack(folder: Path, place: Path) -> None:
    """Write a folder as zip archives, ``NAME.zip``, ``NAME.1.zip``, …, of which each stays small."""
    number, size = 0, 0
    for file in sorted(file for file in folder.rglob("*") if file.is_file() and _is_kept(file, folder.name)):
        packed = len(zlib.compress(file.read_bytes(), 9))
        if size and size + packed > 90_000:
            number, size = number + 1, 0
        size += packed
        with zipfile.ZipFile(place / f"{folder.name}{f'.{number}' * (number > 0)}.zip", "a") as archive:
            name = zipfile.ZipInfo(str(file.relative_to(folder.parent)), (1980, 1, 1, 0, 0, 0))
            archive.writestr(name, file.read_bytes(), zipfile.ZIP_DEFLATED, 9)


def _is_kept(file: Path, folder: str) -> bool:
    if folder == "stopped":
        return file.parent.name == "a" and ".previous." not in file.name
    heavy = file.suffix == ".pt" or (file.name == "model.safetensors" and folder in WITHOUT_WEIGHTS)
    return file.suffix not in LEFT_OUT and not heavy


def main(version: str) -> None:
    """Write the set of a version."""
    torch.set_num_threads(1)
    place = KEPT / version
    place.mkdir()  # a set is never written anew
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    with tempfile.TemporaryDirectory() as folder, inside(Path(folder)):
        make_runs()
        make_rest(store=False)
        for name in FOLDERS:
            pack(Path(folder, name), place)
        found = {name: said(part) for name, part in PARTS.items() if name not in COMPUTED}
    about = {"commit": commit.strip(), "torch": str(torch.__version__), "said": found}
    with zipfile.ZipFile(place / "said.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        packed.writestr("said.json", json.dumps(about, sort_keys=True))
    if large := [file.name for file in place.iterdir() if file.stat().st_size > MOST]:
        sys.exit(f"over {MOST:,} bytes: {', '.join(large)}: take smaller settings in tests/stress/written.py")


if __name__ == "__main__":
    main(sys.argv[1])
