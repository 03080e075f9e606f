"""Every set of files that a version has kept is read by the code of today, which says the same of it; a release has one."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

import flatsparse as fs

pytest.importorskip("tyro")

from tests.kept.write import COMPUTED, FOLDERS, KEPT, MOST, PARTS, said

ROOT = Path(__file__).parent.parent
SETS = sorted(folder.name for folder in KEPT.iterdir() if (folder / "said.zip").is_file())


def about(version: str) -> dict[str, Any]:
    with zipfile.ZipFile(KEPT / version / "said.zip") as packed:
        found: dict[str, Any] = json.loads(packed.read("said.json"))
        return found


def lacking(kept: Any, now: Any, where: str = "") -> list[str]:
    """What was said of a set and is not said now; there may be more keys, and last bits of sums may differ."""
    if isinstance(kept, dict) and isinstance(now, dict):
        return [line for key in kept for line in lacking(kept[key], now.get(key), f"{where}/{key}")]
    if isinstance(kept, list) and isinstance(now, list) and len(kept) == len(now):
        return [line for i, pair in enumerate(zip(kept, now, strict=True)) for line in lacking(*pair, f"{where}/{i}")]
    same = kept == (pytest.approx(now, rel=1e-9) if isinstance(kept, float) and isinstance(now, (int, float)) else now)
    return [] if same else [f"{where}: {kept!r:.80}, now {now!r:.80}"]


@pytest.mark.parametrize("version", SETS)
def test_what_a_version_has_kept_is_read_as_it_was(version, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    kept = about(version)["said"]
    monkeypatch.chdir(tmp_path)
    for name, part in PARTS.items():
        place = tmp_path / re.sub(r"\W", "_", name)
        place.mkdir()
        monkeypatch.chdir(place)
        for folder in {part.folder, *part.needs} & {*FOLDERS}:
            for archive in (KEPT / version).glob(f"{folder}.*"):
                shutil.unpack_archive(archive, place)
        if "own.py" in part.needs:
            from tests.stress.written import SCRIPT

            (place / "own.py").write_text(SCRIPT, encoding="utf-8")
        now = said(part)
        assert name in COMPUTED or lacking(kept[name], now) == [], name


@pytest.mark.parametrize("version", SETS)
def test_a_set_is_small_and_says_who_wrote_it(version):
    assert {file.name.partition(".")[0] for file in (KEPT / version).iterdir()} == {*FOLDERS, "said"}
    assert all(file.stat().st_size <= MOST for file in (KEPT / version).iterdir())
    assert f"`{about(version)['commit']}`" in (KEPT / "README.md").read_text(encoding="utf-8")


def test_every_released_version_has_kept_files():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = set(re.findall(r"^## v?(\d+\.\d+\.\d+)", changes, re.MULTILINE)) - {
        "0.1.0"
    }  # whose set is beside the others
    assert released <= set(SETS), "python -m tests.kept.write VERSION writes one"
    if "## Unreleased" not in changes:
        assert fs.__version__ in SETS
    assert SETS
