"""The bounded form of ``inputs.py``: the same few cases of every part each time."""

import os
from pathlib import Path

import pytest

from .inputs import PARTS, made, tried

CASES = {"command lines": 20, "records": 10, "code": 6, "names": 60, "leading away": 8}
WHOLE = set(PARTS) - set(CASES)  # cases in processes of their own take seconds each


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FLATSPARSE_DATA", raising=False)
        yield made(tmp_path_factory.mktemp("inputs"))


@pytest.mark.skipif(os.name != "posix", reason="names and pipes of another kind")
@pytest.mark.parametrize("part", CASES)
def test_hostile_input_ends_in_one_line_and_loses_nothing(part, files, monkeypatch):
    monkeypatch.delenv("FLATSPARSE_DATA", raising=False)
    counts = tried(part, CASES[part], 0, files)
    assert sum(counts.values()) == CASES[part]


def test_every_part_is_tried_here_but_for_the_slow_one():
    assert {"processes"} == WHOLE
    assert Path(__file__).with_name("inputs.py").is_file()
