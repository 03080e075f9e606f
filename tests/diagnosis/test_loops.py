"""The doctor finds each planted fault, and nothing in loops that are right."""

from __future__ import annotations

import warnings

import pytest

from tests.diagnosis.faults import FAULTS
from tests.diagnosis.loops import Watcher


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("loop", FAULTS, ids=lambda loop: loop.__name__)
def test_a_planted_fault_is_found_and_nothing_else(loop):
    watcher = Watcher()
    loop(watcher)
    name, *its_consequences = FAULTS[loop]
    assert name in watcher.names, watcher.findings
    assert watcher.names <= {name, *its_consequences}, watcher.findings


def test_there_are_twenty_kinds_of_faults_and_more():
    assert len({names[0] for names in FAULTS.values()}) > 20
