"""The bounded form of ``same_bits.py``: a few runs, the second time in another process."""

import json
import sys

import pytest

pytest.importorskip("tyro")

from .done_twice import Case, contents_of
from .same_bits import answered, differences, start

SIZE = {"epochs": 2, "batch_size": 16, "sparsity": 0.8, "seed": 1}
DIGITS = {**SIZE, "train_size": 64, "validation_size": 50, "method": "rigl", "sharpness": "random"}
CASES = [
    Case("run", {**DIGITS, "label_noise": 0.2, "ema": 0.9}, stop=(1,)),
    Case("run", {**SIZE, "method": "set", "sharpness": "s2sam"}, "noisy", workers=2, stop=(1,)),
    Case("run", {**SIZE, "method": "mest", "sharpness": "stale"}, "stream", workers=1),
]


@pytest.mark.skipif(sys.platform == "win32", reason="data workers start slowly there")
def test_a_run_in_another_process_and_in_another_way_has_the_same_bits(tmp_path):
    server = start(3)  # of PYTHONHASHSEED
    try:
        for number, case in enumerate(CASES):
            ours = json.loads(json.dumps(contents_of(case, tmp_path / str(number), plain=True)))
            assert isinstance(ours, dict), ours
            assert differences(ours, answered(server, case, plain=False)) == []
    finally:
        server.stdin.close()
        server.wait()


def test_a_difference_is_found_wherever_it_is():
    ours = {"a": [1, {"b": 2.0}], "c": None}
    assert differences(ours, {"a": [1, {"b": 2.0}], "c": None}) == []
    assert differences(ours, {"a": [1, {"b": 2.0000000000000004}]}) == ["/a/1/b: 2.0 and 2.0000000000000004"]
    assert differences(ours, {"a": [1], "c": 0}) == ["/a/1: {'b': 2.0} and None", "/c: None and 0"]
