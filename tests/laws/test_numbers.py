"""Laws of hostile numbers: whatever a gradient is, what is around the optimizer does no more harm than the optimizer alone.

``tests/hostile_run.py`` has the laws, which hold after each step; ``tests/stress/hostile_numbers.py`` draws any number of cases.
"""

from __future__ import annotations

import math
import re
import time
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import flatsparse as fs
from flatsparse.experiments.run.sharpness import RHO_SCHEDULES
from flatsparse.sam import perturb, perturbation
from flatsparse.sam.looksam import LookSAM
from flatsparse.sam.stalesam import StaleSAM
from flatsparse.schedules import Linear
from tests.helpers import loss_at, mlp, norm, same, saved, seen, sgd, shift, tiny_net, weights
from tests.hostile import BASES, HALF, HAZARDS, KINDS, STEPS, Case, made
from tests.hostile_run import run
from tests.laws.test_methods import SCORED_ON_DATA
from tests.stress import hostile_numbers

SPOILED = [name for name, hazard in HAZARDS.items() if not hazard.finite]


def chosen(row: int, column: int, **options: Any) -> Case:
    """A case whose base, and step of the hazard, come in turn."""
    bases = list(BASES) if options.get("kind") not in ("momentum", "kernel") else ["sgd", "adamw"]
    at = (1, 3, 4, 2)[(row + 2 * column) % 4]  # of which the third updates masks
    hazard = list(HAZARDS)[column]
    return Case(base=bases[(row + column) % len(bases)], hazards=((at, hazard),), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_of_sharpness_does_harm_that_its_base_does_not(kind):
    row = list(KINDS).index(kind)
    for column in range(len(HAZARDS)):
        if (row + column) % 5 == 0:
            run(chosen(row, column, kind=kind))
    run(Case(kind=kind, rho=1e6, lr=0.0, hazards=((2, "zero"), (4, "1e-38 times"))))


@pytest.mark.parametrize("method", fs.METHODS)
def test_no_method_does_harm_that_its_base_does_not(method):
    row = list(fs.METHODS).index(method)
    for column in range(len(HAZARDS)):
        if (row + column) % 7 == 0:
            run(chosen(row, column, method=method))
    case = Case(method=method, net="odd", hazards=((3, "a NaN"), (4, "1e+38 times")))
    if case.is_made:
        run(case)


@pytest.mark.parametrize("net", HALF)
@pytest.mark.parametrize("base", BASES)
def test_half_precision_does_no_harm_that_its_base_does_not(base, net):
    """In float16 the eps of Adam is 0, and a step of a weight without a gradient, as masked ones are, is 0/0."""
    for kind, hazard in (("none", "1e+18 times"), ("previous", "an infinity"), ("sam", "1e-15 times")):
        run(Case(kind=kind, base=base, net=net, hazards=((3, hazard),)))


@pytest.mark.parametrize("method", fs.METHODS)
def test_a_run_of_a_million_million_steps_is_planned_at_once(method):
    began = time.process_time()
    case = Case(method=method, start=10**12 - STEPS)
    model, _, training = made(case, "previous")
    assert time.process_time() - began < 1.0
    run(case)
    assert training.steps_taken == case.start
    if method not in SCORED_ON_DATA | {"dense", "static", "lth", "lrr"}:
        due = [training.due(step) for step in (10**11, 5 * 10**11, 6 * 10**11)]
        assert any(due) or method.endswith("-itop") or method in ("chex", "safe")
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", RHO_SCHEDULES)
def test_a_radius_is_planned_over_a_million_million_steps(name):
    far = 10**12
    schedule = RHO_SCHEDULES[name](0.1, far, far // 5)
    model = mlp(norm=False)
    optimizer = fs.S2SAM(sgd(model.parameters()), rho=schedule).follow(model)
    found = []
    for taken in (0, far // 2, far - 2):
        optimizer.param_groups[0]["perturbation_step"] = taken
        for step in range(2):
            loss_at(model, step).backward()
            optimizer.step()
            optimizer.zero_grad()
        true = weights(model)
        with optimizer.perturbed():
            found.append(norm(shift(model, true)))
    first, middle, last = found
    assert last <= first <= 0.1 * 1.001 or name == "late"
    assert {
        "constant": middle == pytest.approx(0.1, rel=1e-3) == last,
        "inverse-sqrt": 0 < last < middle < 1e-6 < first,
        "linear": middle == pytest.approx(0.05, rel=1e-3) and last < 1e-6,
        "cosine": middle == pytest.approx(0.05, rel=1e-3) and last < 1e-6,
        "late": first == middle == 0 and last == pytest.approx(0.1, rel=1e-3),
    }[name]


def test_drawn_cases_hold_and_are_counted(capsys):
    assert hostile_numbers.main(8, first=0) == 0
    assert re.fullmatch(r"8 cases held \(.*\); \d+ seconds\n", capsys.readouterr().out)


def test_a_case_that_breaks_a_law_is_told_with_what_repeats_it(capsys, monkeypatch):
    monkeypatch.setattr(perturb, "is_unusable", lambda length: False)
    monkeypatch.setattr(hostile_numbers, "drawn", lambda seed: Case(base="rprop", hazards=((2, "a NaN"),), seed=seed))
    assert hostile_numbers.main(3, first=7) == 1
    told = capsys.readouterr().out.splitlines()
    assert "seed=7): AssertionError: a perturbation is not finite" in told[0]
    assert told[1:] == ["repeat it: python tests/stress/hostile_numbers.py 1 --seed 7"]


# -- what is said of it ---------------------------------------------------------------------------------------------------


def test_a_step_without_a_finite_gradient_is_told_of_once_and_the_next_is_not_perturbed():
    model = mlp(norm=False)
    optimizer = fs.S2SAM(torch.optim.Rprop(model.parameters(), lr=1e-3), rho=0.5).follow(model)
    lengths = []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for step in range(8):
            before = weights(model)
            loss = loss_at(model, step)
            lengths.append(round(norm(shift(model, before)), 3))
            loss.backward()
            if step in (3, 5):
                model[0].weight.grad[0, 0] = float("nan")
            optimizer.step()
            optimizer.zero_grad()
    assert lengths == [0.0, 0.5, 0.5, 0.5, 0.0, 0.5, 0.0, 0.5]
    (message,) = [str(w.message) for w in told]
    assert message.startswith("S2SAM: a direction, which is a gradient or made of some, was not finite")
    assert "GradScaler" in message


@pytest.mark.parametrize("adaptive", [False, True])
def test_where_the_host_would_wait_only_entries_that_are_not_finite_are_perturbed_to_nan(monkeypatch, adaptive):
    for module in (perturb, perturbation):
        monkeypatch.setattr(module, "is_unusable", lambda length: False)  # as of an accelerator's norm
    w = nn.Parameter(torch.arange(4.0))
    optimizer = fs.S2SAM(torch.optim.SGD([w], lr=0.0), rho=0.5, adaptive=adaptive)
    for value in (math.nan, math.inf):
        w.data.copy_(torch.arange(4.0))
        with optimizer.perturbed():
            w.grad = torch.tensor([1.0, value, -2.0, 0.0])
        optimizer.step()
        w.data.copy_(torch.arange(4.0))  # without a trace
        with optimizer.perturbed():
            assert w[1].isnan()
            assert w[[0, 2, 3]].tolist() == [0.0, 2.0, 3.0]


def test_a_part_that_is_not_finite_costs_stale_sam_no_weight():
    model = mlp(norm=False)
    optimizer = StaleSAM(sgd(model.parameters()), rho=0.5).follow(model)
    for step in range(5):
        loss_at(model, step).backward()
        scale = float("inf") if step == 1 else 1.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer.step(part=lambda scale=scale, step=step: (loss_at(model, step) * scale).backward())
        optimizer.zero_grad()
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("spoiled", SPOILED)
def test_an_update_of_rigl_in_a_spoiled_step_moves_nothing_and_says_so(spoiled):
    model, optimizer, training = made(Case(), "previous")
    masks = {name: mask.clone() for name, mask in training.masks.items()}
    for step in range(1, 7):
        before = weights(model)
        with optimizer.perturbed():
            for p in model.parameters():
                p.grad = torch.ones_like(p)
                if step == 3 and (spoiled == "NaN everywhere" or p.shape == (6, 1, 3, 3)):
                    p.grad.fill_(float("inf") if spoiled == "an infinity" else float("nan"))
        if step == 3:
            with pytest.warns(UserWarning, match=r"\Aa gradient is not finite at an update of the masks \(step 3\)"):
                optimizer.step()
            # An update takes the place of the weight step, and the masks of the others move.
            assert torch.equal(model[0].weight, before[0])
            assert torch.equal(training.masks["0.weight"], masks["0.weight"])
            assert same(masks, dict(training.masks)) == (spoiled == "NaN everywhere")
        else:
            optimizer.step()
            assert all(p.isfinite().all() for p in model.parameters())


def test_nothing_is_chosen_by_a_gradient_of_zeros():
    model, optimizer, training = made(Case(), "none")
    before, masks = weights(model), {name: mask.clone() for name, mask in training.masks.items()}
    training.load_state_dict({**training.state_dict(), "steps_taken": 2})
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert same(masks, dict(training.masks))
    assert same(weights(model), before)


def test_rounds_of_weights_that_are_not_finite_are_refused_before_anything_changes():
    model, optimizer, training = made(Case(method="lth"), "none")
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    before = seen(model, optimizer, training)
    with pytest.raises(fs.InputError, match=r"\Athe weights of '0\.weight' are not finite after round 0.*\Z"):
        training.next_round()
    assert same(before, seen(model, optimizer, training))


def test_a_schedule_that_leaves_the_numbers_is_named_with_its_step():
    model = mlp()
    optimizer = fs.S2SAM(sgd(model.parameters()), rho=lambda step: 0.1 if step < 3 else float("inf"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(3):
            loss_at(model, step).backward()
            if step == 1:
                with pytest.raises(fs.InputError, match=r"\Arho of step 3, inf is not usable.*\Z"):
                    optimizer.step()
                break
            optimizer.step()
    for rho in (float("inf"), float("nan"), Linear(float("nan"), 0.0, until=5)):
        with pytest.raises(fs.InputError, match="rho"):
            fs.S2SAM(sgd(model.parameters()), rho=rho)


def test_looksam_has_no_orthogonal_part_of_a_single_weight():
    w = nn.Parameter(torch.tensor([0.3]))
    optimizer = LookSAM(torch.optim.SGD([w], lr=0.01), rho=0.1, every=3)
    for step in range(9):

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = (1e6 * w.square()).sum()
            loss.backward()
            return loss

        with torch.no_grad():
            w.fill_(0.3)
        optimizer.step(closure)
        away = 0.1 if step % 3 == 0 else 0.0
        assert w.item() == pytest.approx(0.3 - 0.01 * 2e6 * (0.3 + away), rel=1e-4)


def test_overflow_in_half_precision_skips_the_step_and_leaves_all_as_it_was():
    model = tiny_net()
    optimizer = fs.S2SAM(sgd(model.parameters()), rho=0.1)
    training = fs.sparsify(model, optimizer, "rigl", sparsity=0.8, steps=20, every=3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(1, 8):
        inputs = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(step))
        with torch.autocast("cpu", torch.float16):
            loss = model(inputs).square().mean() * (1e7 if step == 3 else 1.0)
        before = saved((model.state_dict(), training.state_dict()))
        scaler.scale(loss.float()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        skipped = same(before[1], saved(training.state_dict()))
        assert skipped == (step == 3)
        if skipped:
            assert all(map(torch.equal, _parameters(model.state_dict()), _parameters(before[0])))
    assert all(p.isfinite().all() for p in model.parameters())


def _parameters(state: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return [tensor for name, tensor in state.items() if "running" not in name and "num_batches" not in name]
