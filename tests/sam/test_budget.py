"""A budget of loss in place of a radius: the plain form, its limits, and what is kept of it."""

from __future__ import annotations

import copy

import pytest
import torch

import flatsparse as fs
from flatsparse.sam.perturbed_weights import REACH
from flatsparse.schedules import Cosine, Linear, Stages
from tests.helpers import (
    backward,
    bases,
    close,
    conv_net,
    gradients,
    loss_at,
    mlp,
    norm,
    same,
    saved,
    sgd,
    shift,
    train_steps,
    weights,
)

pytestmark = pytest.mark.filterwarnings("error")

wrappers = pytest.mark.parametrize("wrapper", [fs.S2SAM, fs.SAM])


def lengths_and_slopes(model, optimizer, steps, start=0):
    """Of each step the norm of its perturbation, and that of the gradient it is along."""
    lengths, slopes, previous = [], [], None
    for step in range(start, start + steps):
        if isinstance(optimizer, fs.SAM):
            backward(model, step)
            previous = norm(gradients(model))
        w = weights(model)
        with optimizer.perturbed():
            lengths.append(norm(shift(model, w)))
            slopes.append(previous)
            optimizer.zero_grad()
            backward(model, step)
            previous = norm(gradients(model))
        optimizer.step()
        optimizer.zero_grad()
    return lengths, slopes


@bases
@wrappers
def test_the_radius_is_the_budget_over_the_slope_and_at_most_rho(base, wrapper):
    model = mlp(norm=False)
    rho, sigma = 0.1, 0.08
    optimizer = wrapper(base(model.parameters()), rho=rho, budget=sigma)
    lengths, slopes = lengths_and_slopes(model, optimizer, 12)
    if wrapper is fs.S2SAM:  # its first step is unperturbed
        assert lengths.pop(0) == 0
        slopes.pop(0)
    assert lengths == [close(min(rho, sigma / slope)) for slope in slopes]
    assert min(sigma / slope for slope in slopes) < rho < max(sigma / slope for slope in slopes)  # both are met


def test_to_first_order_the_loss_rises_by_the_budget():
    model = mlp(norm=False, dtype=torch.float64)
    optimizer, sigma = fs.SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=1.0, budget=1e-5), 1e-5
    before = backward(model)
    with optimizer.perturbed(), torch.no_grad():
        assert float(loss_at(model) - before) == pytest.approx(sigma, rel=1e-2)


def test_an_adaptive_radius_is_the_budget_over_the_scaled_slope():
    model, sigma = mlp(norm=False), 1e-3
    optimizer = fs.SAM(sgd(model.parameters()), rho=10.0, budget=sigma, adaptive=True)
    backward(model)
    w, g = weights(model), gradients(model)
    scale = [x.abs() + 0.01 for x in w]
    slope = norm([t * x for t, x in zip(scale, g, strict=True)])
    expected = [sigma / slope * t * t * x / slope for t, x in zip(scale, g, strict=True)]
    with optimizer.perturbed():
        torch.testing.assert_close(shift(model, w), expected, rtol=1e-3, atol=1e-7)


@wrappers
def test_groups_with_a_radius_of_their_own_have_that_at_most(wrapper):
    model = mlp(norm=False)
    groups = [
        {"params": model[0].parameters(), "rho": 0.0},
        {"params": model[2].weight, "rho": 1e-3},
        {"params": model[2].bias},
    ]
    optimizer = wrapper(sgd(groups), rho=10.0, budget=0.1).follow(model)
    backward(model, 0)
    g = [p.grad.clone() for p in model[2].parameters()]
    if wrapper is fs.S2SAM:
        optimizer.step()
        optimizer.zero_grad()
    w = weights(model)
    with optimizer.perturbed():
        moved = shift(model, w)
    assert norm(moved[:2]) == 0
    for e, d, rho in zip(moved[2:], g, (1e-3, 0.1 / norm(g)), strict=True):
        torch.testing.assert_close(e, rho * d / norm(g), rtol=1e-3, atol=1e-6)


@bases
@wrappers
def test_a_budget_of_0_is_the_base_bit_for_bit_in_one_pass(base, wrapper):
    plain, ours, calls = mlp(), mlp(), []
    optimizer = wrapper(base(ours.parameters()), rho=0.5, budget=0.0).follow(ours)

    def closure(step):
        optimizer.zero_grad()
        calls.append(step)
        return backward(ours, step)

    reference = base(plain.parameters())
    for step in range(4):
        optimizer.step(lambda step=step: closure(step))
        train_steps(plain, reference, 1, start=step)
    assert calls == [0, 1, 2, 3]
    assert same(plain.state_dict(), ours.state_dict())


@wrappers
def test_a_schedule_gives_each_step_its_own_budget(wrapper):
    model, schedule = mlp(norm=False), Cosine(1e-3, 0.0, until=6)
    optimizer = wrapper(sgd(model.parameters()), rho=10.0, budget=schedule)
    lengths, slopes = lengths_and_slopes(model, optimizer, 6)
    first = 1 if wrapper is fs.SAM else 2
    for step in range(first, 7):
        assert lengths[step - 1] == pytest.approx(schedule(step) / slopes[step - 1], rel=2e-3)


@bases
@pytest.mark.parametrize("options", [{}, {"compact": True}, {"in_place": True}, {"adaptive": True}], ids=str)
@pytest.mark.parametrize("budget", [0.05, Stages((0.05, 0.02), (4,))])
def test_resume_equals_never_having_stopped_within_masks(base, options, budget):
    def make(seed):
        model = conv_net(seed)
        optimizer = fs.S2SAM(base(model.parameters()), rho=0.1, budget=budget, **options)
        return model, optimizer, fs.sparsify(model, optimizer, "rigl", sparsity=0.7, steps=20, every=3)

    parts, resumed = make(0), make(1)
    train_steps(*parts[:2], 5)
    for other, part in zip(resumed, parts, strict=True):
        other.load_state_dict(saved(part.state_dict()))
    train_steps(*parts[:2], 5, start=5)
    train_steps(*resumed[:2], 5, start=5)
    assert same(parts[0].state_dict(), resumed[0].state_dict())
    assert same(parts[1].state_dict(), resumed[1].state_dict())
    loss_at(parts[0], 99)
    for name, mask in parts[2].masks.items():
        assert not parts[0].get_parameter(name)[~mask].any()


@pytest.mark.parametrize("now", [0.3, 0.05, 0.001, 0.0])
def test_a_radius_that_is_changed_before_the_next_forward_is_kept_to(now):
    """Of perturbed weights that there are already, the length changes as if it had been the limit when they were made."""
    model = mlp(norm=False)
    optimizer = fs.S2SAM(sgd(model.parameters()), rho=0.1, budget=0.02).follow(model)
    backward(model)
    slope = norm(gradients(model))
    optimizer.step()
    optimizer.param_groups[0]["rho"] = now
    w = weights(model)
    loss_at(model, 1)
    assert norm(shift(model, w)) == pytest.approx(min(now, 0.02 / slope), rel=1e-3)


def test_groups_say_what_the_budget_allowed_and_only_with_one():
    model = mlp(norm=False)
    optimizer = fs.S2SAM(sgd(model.parameters()), rho=0.1, budget=0.02).follow(model)
    train_steps(model, optimizer, 1)
    backward(model, 1)
    slope = norm(gradients(model))
    optimizer.step()
    assert float(optimizer.param_groups[0][REACH]) == pytest.approx(0.02 / slope)
    copied = copy.deepcopy(optimizer)
    assert copied.radius.budget == 0.02
    plain = fs.S2SAM(sgd(model.parameters()), rho=0.1).follow(model)
    plain.load_state_dict(saved(optimizer.state_dict()))
    assert REACH in plain.param_groups[0]  # of the perturbed weights that were loaded
    train_steps(model, plain, 1)
    assert REACH not in plain.param_groups[0]


def test_a_flat_loss_is_perturbed_by_no_more_than_rho():
    w = torch.nn.Parameter(torch.zeros(3))
    optimizer = fs.S2SAM(torch.optim.SGD([w], lr=0.1), rho=0.5, budget=1.0)
    for gradient in (torch.zeros(3), torch.full((3,), 1e-30)):
        w.grad = gradient
        with optimizer.perturbed():  # so that no step is without one
            pass
        optimizer.step()
        with optimizer.perturbed():
            assert w.isfinite().all()
            assert float(w.detach().norm()) <= 0.5 + 1e-6


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"budget": -1.0}, r"\Abudget -1\.0 .*\Z"),
        ({"budget": Linear(float("nan"), 0.0, until=3)}, r"\Abudget nan .*\Z"),
        ({"budget": 1.0, "direction": "random"}, r"\Abudget is for the previous gradient.*'random'.*\Z"),
        ({"budget": 1.0, "kernel": True}, r"\Akernel=True is for .* without a budget.*\Z"),
    ],
)
def test_budgets_that_cannot_be_are_refused(options, line):
    with pytest.raises(fs.InputError, match=line):
        fs.S2SAM(sgd(mlp().parameters()), rho=0.1, **options)
