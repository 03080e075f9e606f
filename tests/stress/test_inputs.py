"""The bounded form of ``inputs.py``: the same few cases of every part each time."""

import os

import pytest

from .inputs import PARTS, made, tried

CASES = {"command lines": 12, "records": 6, "code": 4, "names": 40, "leading away": 5}


@pytest.mark.filterwarnings("ignore")  # of commands, which say what they did to reach an end
@pytest.mark.skipif(os.name != "posix", reason="names and pipes of another kind")
def test_hostile_input_ends_in_one_line_and_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("FLATSPARSE_DATA", raising=False)
    assert set(PARTS) - set(CASES) == {"processes"}  # which take seconds each
    files = made(tmp_path)
    for part, count in CASES.items():
        assert sum(tried(part, count, 0, files).values()) == count
