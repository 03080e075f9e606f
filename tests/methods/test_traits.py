"""Traits and rules of a method of one's own: it declares what it is, and nobody asks for its name."""

import dataclasses

import pytest
import torch

import flatsparse as fs
from flatsparse.experiments.run.build import build
from flatsparse.experiments.run.config import RunConfig
from flatsparse.experiments.run.resolve import resolve
from flatsparse.measure.estimate import estimate
from flatsparse.methods import METHODS, methods_with, options_of, traits_of
from flatsparse.schedules import At
from flatsparse.sparse.distributions import uniform
from flatsparse.sparse.plan import Plan, due, due_steps
from flatsparse.sparse.rules import Rule
from flatsparse.sparse.scores import each, magnitude
from tests.helpers import tiny_net

OWN = """
from dataclasses import dataclass

from flatsparse.methods import GMP, SNIP
from flatsparse.sparse.distributions import uniform
from flatsparse.sparse.plan import Plan
from flatsparse.sparse.scores import each, magnitude


@dataclass(frozen=True)
class Half:
    "Half of the weights, whatever is asked."

    takes_sparsity = False

    def plan(self, sparsity, steps):
        assert sparsity == 0
        return Plan(0.5, each(magnitude), uniform)


@dataclass(frozen=True)
class Asked(GMP):
    "It says of itself what is so anyway."

    takes_sparsity = True
    default_sparsity = 0.25


@dataclass(frozen=True)
class OfOne(SNIP):
    "It scores on one batch."


@dataclass(frozen=True)
class OfAll(SNIP):
    "It scores on all batches."

    scoring = "batches"
"""


def run_of(tmp_path, name, **settings):
    file = tmp_path / "own.py"
    file.write_text(OWN)
    settings = {"train_size": 40, "validation_size": 20, "batch_size": 16, "epochs": 2, **settings}
    return RunConfig.of(method=f"{file}:{name}", **settings)


def test_a_method_that_takes_no_sparsity_is_asked_for_none(tmp_path):
    run = resolve(run_of(tmp_path, "Half"))
    assert run.pruning.sparsity == 0
    assert build(run).training.sparsity == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(fs.InputError, match=r"--sparsity 0\.9 cannot be asked of"):
        resolve(run_of(tmp_path, "Half", sparsity=0.9))


def test_a_method_that_says_that_it_takes_one_is_given_its_default(tmp_path):
    assert resolve(run_of(tmp_path, "Asked")).pruning.sparsity == 0.25
    assert resolve(run_of(tmp_path, "Asked", sparsity=0.9)).pruning.sparsity == 0.9


@pytest.mark.parametrize(("name", "count"), [("OfOne", 1), ("OfAll", 3)])
def test_a_method_gets_the_batches_that_it_scores_on(tmp_path, name, count, monkeypatch):
    seen = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **options: seen.append(0) or grad(*args, **options))
    training = build(resolve(run_of(tmp_path, name))).training
    assert len(seen) == count
    assert training.sparsity == pytest.approx(0.9, abs=1e-3)


def test_what_is_not_declared_has_the_default_and_options_are_the_fields():
    @dataclasses.dataclass(frozen=True)
    class Plain:
        every: int = 3

        def plan(self, sparsity, steps):
            return Plan(sparsity, each(magnitude), uniform)

    assert traits_of(Plain) == traits_of(Plain()) == fs.methods.Traits()
    assert options_of(Plain) == options_of(Plain()) == ("every",)
    assert methods_with("channels") == ["chex", "chase"]
    assert set(methods_with("batches")) == {name for name, kind in METHODS.items() if traits_of(kind).scoring != "none"}


@dataclasses.dataclass(frozen=True)
class Grows(Rule):
    """A rule of one's own, which makes the first row of every layer active and remembers how often."""

    when: At
    changes_counts = True

    def __call__(self, state, step):
        state.memory["times"] = state.memory.get("times", 0) + 1
        assert len(state.channels) == 0
        rows = {w.name: w.mask.clone() for w in state.masks}
        for mask in rows.values():
            mask[0] = True
        return rows

    def counts(self, expected, step):
        return {name: len(scores[0].flatten()) for name, scores in expected.scores.items()}


@dataclasses.dataclass(frozen=True)
class Growing:
    def plan(self, sparsity, steps):
        return Plan(sparsity, each(magnitude), uniform, rules=(Grows(At(frozenset({1, 3}))),))


def test_a_rule_of_ones_own_reads_the_state_and_adds_to_its_memory():
    model = tiny_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = fs.sparsify(model, optimizer, Growing(), sparsity=0.95, steps=4)
    for _ in range(4):
        model(torch.randn(4, 1, 8, 8)).sum().backward()
        optimizer.step()
    assert training.state_dict()["memory"] == {"times": 1}  # nothing acts at the first step
    assert all(mask[0].all() for mask in training.masks.values())
    told = estimate(tiny_net(), torch.zeros(1, 1, 8, 8), Growing(), sparsity=0.95, steps=4)
    assert [layer.active for layer in told.layers] == [mask[0].numel() for mask in training.masks.values()]


def test_no_rule_is_due_at_the_first_step():
    plan = Growing().plan(0.5, 4)
    assert [bool(due(plan, step)) for step in (1, 2, 3)] == [False, False, True]
    assert due_steps(plan.rules, last=4).count(0, 4) == 1
    assert due_steps(plan.rules, last=4, after=3).count(0, 4) == 0


def test_a_rule_that_derives_from_none_is_refused_in_a_line():
    class Old:
        when, weight_step, dense_gradient = At(frozenset({2})), True, False

        def __call__(self, masks, step):
            return {}

    with pytest.raises(fs.InputError, match=r"\AOld is no rule .*derive it from flatsparse\.sparse\.rules\.Rule.*\Z"):
        Plan(0.5, each(magnitude), uniform, rules=(Old(),))
