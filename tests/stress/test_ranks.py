"""The bounded form of ``ranks.py``: one process of two is killed, and one is stopped."""

import os

import pytest

from .ranks import Case, run


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="only Linux tells the state of a process")
def test_a_killed_and_a_stopped_process_are_named_and_a_restart_ends_alike():
    counts, _ = run([(0, Case("kill", 2, 1, 2.5)), (1, Case("stop", 2, 0, 3.0))])
    assert counts == {"kill: named": 1, "stop: named": 1}
