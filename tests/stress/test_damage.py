"""The bounded form of ``damage.py``, over runs, masks and changes; ``make stress`` damages all else that is written too."""

import os

import pytest

from .damage import ANOTHER, NAMED, UNCHANGED, run
from .written import RUN_PARTS, make_runs


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_damaged_files_are_named_and_neither_used_nor_removed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_runs()
    counts = run(60, 0, tmp_path, RUN_PARTS)
    assert counts[NAMED] > 30
    assert sum(counts.get(name, 0) for name in (NAMED, UNCHANGED, ANOTHER)) == 60
