"""The directions of S2SAM, alone and within masks."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import flatsparse as fs
from flatsparse.sam.directions import DIRECTIONS, direction_of
from tests.helpers import (
    backward,
    bases,
    batch,
    close,
    conv_net,
    gradients,
    loss_at,
    mlp,
    norm,
    s2sam,
    same,
    saved,
    sgd,
    shift,
    train_steps,
    weights,
)

pytestmark = pytest.mark.filterwarnings("error")


# -- directions -------------------------------------------------------------------------------------------------------


def shifts(optimizer, model, steps, start=0):
    found = []
    for step in range(start, start + steps):
        w = weights(model)
        backward(model, step)
        found.append(shift(model, w))
        optimizer.step()
        optimizer.zero_grad()
    return found


def test_random_directions_have_norm_rho_and_differ():
    model = mlp()
    found = shifts(s2sam(model, rho=0.5, direction="random"), model, 4)
    assert [norm(e) for e in found] == [0.0, *[close(0.5)] * 3]
    flat = [torch.cat([x.flatten() for x in e]) for e in found[1:]]
    assert all(abs(torch.cosine_similarity(a, b, 0)) < 0.5 for a, b in itertools.pairwise(flat))


def test_random_directions_come_from_the_seed():
    a, b, c = (shifts(s2sam(m := mlp(), direction="random", seed=seed), m, 3) for seed in (1, 1, 2))
    assert same(a, b)
    assert not same(a, c)


def test_random_directions_go_on_after_a_resume():
    model, other = mlp(), mlp(1)
    optimizer, resumed = (s2sam(m, rho=0.5, direction="random", seed=1) for m in (model, other))
    train_steps(model, optimizer, 3)
    other.load_state_dict(saved(model.state_dict()))
    resumed.load_state_dict(saved(optimizer.state_dict()))
    assert same(shifts(optimizer, model, 3, start=3), shifts(resumed, other, 3, start=3))


def test_a_direction_may_be_a_function():
    model = mlp(norm=False)
    optimizer = s2sam(model, rho=0.5, direction=lambda optimizer, g: {p: -x for p, x in g.items()})
    backward(model, 0)
    g = gradients(model)
    optimizer.step()
    w = weights(model)
    loss_at(model, 1)
    torch.testing.assert_close(shift(model, w), [-0.5 * x / norm(g) for x in g], rtol=1e-4, atol=1e-6)


# -- masks ------------------------------------------------------------------------------------------------------------


def outside(training, model):
    """For each masked weight, its mask's complement."""
    return [(p, ~training.masks[name]) for name, p in model.named_parameters() if name in training.masks]


@bases
@pytest.mark.parametrize("direction", ["previous", "random"])
@pytest.mark.parametrize("method", ["static", "rigl"])
def test_with_masks_the_perturbation_lives_on_live_weights(base, direction, method):
    model = conv_net()
    optimizer = fs.S2SAM(base(model.parameters()), rho=0.5, direction=direction)
    options = {"every": 3} if method == "rigl" else {}
    training = fs.sparsify(model, optimizer, method, sparsity=0.7, steps=20, **options)
    for step in range(8):
        w = weights(model)
        backward(model, step)
        assert norm(shift(model, w)) == close(0.5 if step else 0.0)
        assert all(p[dead].count_nonzero() == 0 for p, dead in outside(training, model))
        optimizer.step()
        optimizer.zero_grad()
    assert training.sparsity == pytest.approx(0.7, abs=0.01)


@bases
def test_a_first_gradient_on_a_step_that_a_rule_takes_over_is_no_trouble(base):
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.late = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x, ready=False):
            return self.first(x) + (self.late(x) if ready else 0)

    model = Late()
    optimizer = fs.S2SAM(base(model.parameters()), rho=0.5)
    fs.sparsify(model, optimizer, "rigl", sparsity=0.5, steps=20, every=3)
    for step in range(6):
        w = weights(model.late)
        model(batch(step)[0], ready=step >= 2).square().sum().backward()
        # At step 2 the base keeps no state for it, and Adam would take an entry of ours for its own.
        first = 2 if isinstance(optimizer.base, torch.optim.SGD) else 3
        assert (norm(shift(model.late, w)) > 0) == (step > first)
        optimizer.step()
        optimizer.zero_grad()


@bases
def test_grown_weights_start_at_zero_in_the_perturbation_too(base):
    model = conv_net()
    optimizer = fs.S2SAM(base(model.parameters()), rho=0.5)
    training = fs.sparsify(model, optimizer, "rigl", sparsity=0.7, steps=20, every=3)
    train_steps(model, optimizer, 2)
    old = {name: mask.clone() for name, mask in training.masks.items()}
    train_steps(model, optimizer, 1, start=2)
    w = dict(zip(dict(model.named_parameters()), weights(model), strict=True))
    backward(model, 3)
    grown = {name: mask & ~old[name] for name, mask in training.masks.items()}
    assert sum(int(g.sum()) for g in grown.values()) > 0
    for name, g in grown.items():
        assert w[name][g].count_nonzero() == model.get_parameter(name)[g].count_nonzero() == 0


def test_masks_that_come_while_perturbed_restore_w():
    model = conv_net()
    optimizer = s2sam(model, rho=0.5)
    train_steps(model, optimizer, 2)
    w = dict(zip(dict(model.named_parameters()), weights(model), strict=True))
    loss_at(model)
    training = fs.sparsify(model, optimizer, "static", sparsity=0.7, steps=20)
    assert not optimizer.is_perturbed
    for name, p in model.named_parameters():
        assert same(p.detach(), torch.where(training.masks.get(name, torch.tensor(True)), w[name], 0))
    train_steps(model, optimizer, 2)
    assert all(p[dead].count_nonzero() == 0 for p, dead in outside(training, model))


def test_unmasked_perturbation_reaches_dead_weights_and_leaves_them_zero():
    model = conv_net()
    optimizer = fs.S2SAM(sgd(model.parameters()), rho=0.5, mask_perturbation=False)
    training = fs.sparsify(model, optimizer, "static", sparsity=0.7, steps=20)
    for step in range(5):
        w = weights(model)
        backward(model, step)
        assert norm(shift(model, w)) == close(0.5 if step else 0.0)
        assert all((p[dead].count_nonzero() > 0) == (step > 0) for p, dead in outside(training, model))
        optimizer.step()
        optimizer.zero_grad()
        assert all(p[dead].count_nonzero() == 0 for p, dead in outside(training, model))


def test_a_function_of_ours_is_the_direction_of_its_name():
    assert all(direction_of(direction.find) is direction for direction in DIRECTIONS.values())
