"""The bounded form of ``kill_anywhere.py``: some commands, each killed a few times; ``make stress`` kills all."""

import os
import random

import pytest

from .kill_anywhere import check, prepared, written_set
from .kill_cases import example

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="processes are found in Linux's way")
QUICK = [
    example("train", "rigl", "s2sam"),
    example("export", "dense"),
]
SLOW = [
    example("train", "lth"),
    example("train on text", "mest"),
    example("compare a script", "2"),
    example("landscape", "2", "0"),
    example("train, streamed", "2"),
    example("reproduce", "2"),
    example("evaluate --after", "2"),
    example("export", "onnx"),
]


@pytest.fixture(scope="module")
def whole_set(tmp_path_factory):
    with prepared():
        yield written_set(tmp_path_factory.mktemp("kill") / "set")


@pytest.mark.parametrize("case", [*QUICK, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)], ids=str)
def test_a_command_killed_at_random_moments_ends_as_if_undisturbed(whole_set, tmp_path, case):
    assert check(case, whole_set, tmp_path, random.Random(str(case)), most=3).kills > 0
