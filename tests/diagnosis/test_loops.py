"""The doctor finds each planted fault, and nothing in loops that are right."""

from __future__ import annotations

from pathlib import Path

import pytest

import flatsparse as fs
from flatsparse.methods import traits_of
from tests.diagnosis.faults import FAULTS
from tests.diagnosis.loops import Watcher
from tests.diagnosis.right_loops import RIGHT
from tests.helpers import same, sgd, tiny_net, train_on_images
from tests.laws.test_methods import SCORED_ON_DATA


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


@pytest.mark.parametrize("loop", RIGHT, ids=lambda loop: loop.__name__)
def test_a_right_loop_has_no_findings(loop):
    watcher = Watcher()
    loop(watcher)
    assert watcher.findings == []


@pytest.mark.parametrize("loop", RIGHT, ids=lambda loop: loop.__name__)
def test_a_watched_loop_computes_the_same_bits(loop):
    alone, watched = loop(Watcher(on=False)), loop(Watcher())
    assert same(alone.state_dict(), watched.state_dict())


TRAITS = {name: traits_of(kind) for name, kind in fs.METHODS.items()}
ONE_ROUND = sorted(set(fs.METHODS) - {"lth", "lrr"} - SCORED_ON_DATA)


@pytest.mark.parametrize("kind", [None, fs.S2SAM], ids=["plain", "s2sam"])
@pytest.mark.parametrize("method", ONE_ROUND)
def test_every_method_is_right_in_the_loop_of_a_user(method, kind):
    model = tiny_net()
    base = sgd(model.parameters())
    optimizer = base if kind is None else kind(base)
    amount = {"sparsity": 0.0 if method == "dense" else 0.7}
    if not TRAITS[method].takes_sparsity:
        amount = {"channels": 0.3}
    training = fs.sparsify(model, optimizer, method, steps=24, **amount)
    with fs.watching(model, optimizer, training) as findings:
        train_on_images(model, optimizer, 24)
    assert findings == []


def test_there_are_twenty_right_loops_and_more():
    assert len(RIGHT) > 20


def test_every_fault_is_on_the_page():
    page = (Path(__file__).parents[2] / "docs/doctor.md").read_text(encoding="utf-8")
    named = {names[0] for names in FAULTS.values()}
    assert {name for name in named if not name.startswith("warning-") and f"`{name}`" not in page} == set()
