"""StaleSAM: the plain form, masks, what is kept, and the part of a batch."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

import flatsparse as fs
from flatsparse.sam.stalesam import StaleSAM
from flatsparse.schedules import Late
from tests.helpers import (
    backward,
    bases,
    batch,
    close,
    conv_net,
    gradients,
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

PART = 2  # samples, of a batch of eight


def part_of(model, step):
    inputs, targets = batch(step, dtype=next(model.parameters()).dtype)
    loss = F.cross_entropy(model(inputs[:PART]), targets[:PART])
    loss.backward()
    return loss


def take(model, optimizer, steps, start=0):
    """Steps by calls of a followed model; how many parts were asked for."""
    asked = []
    for step in range(start, start + steps):
        backward(model, step)
        optimizer.step(part=lambda step=step: asked.append(part_of(model, step)))
        optimizer.zero_grad()
    return len(asked)


@bases
def test_it_is_the_plain_loop(base):
    plain, ours = (mlp(norm=False, dtype=torch.float64) for _ in range(2))
    reference, rho, stale = base(plain.parameters()), 0.3, None
    for step in range(6):
        part_of(plain, step)
        coming = gradients(plain)
        reference.zero_grad()
        w = weights(plain)
        with torch.no_grad():
            for p, d in zip(plain.parameters(), stale or [], strict=stale is not None):
                p += rho * d / norm(stale)
        backward(plain, step)
        with torch.no_grad():
            for p, old in zip(plain.parameters(), w, strict=True):
                p.copy_(old)
        reference.step()
        reference.zero_grad()
        stale = coming
    take(ours, StaleSAM(base(ours.parameters()), rho=rho).follow(ours), 6)
    torch.testing.assert_close(weights(ours), weights(plain), rtol=1e-9, atol=1e-11)


@bases
def test_a_closure_and_a_followed_model_are_the_same(base):
    followed, ours = mlp(), mlp()
    take(followed, StaleSAM(base(followed.parameters()), rho=0.3).follow(followed), 4)
    optimizer = StaleSAM(base(ours.parameters()), rho=0.3)
    for step in range(4):

        def closure(step=step):
            optimizer.zero_grad()
            return backward(ours, step)

        loss = optimizer.step(closure, part=lambda step=step: part_of(ours, step))
        assert loss.ndim == 0
    for one, other in zip(followed.parameters(), ours.parameters(), strict=True):
        assert torch.equal(one, other)


@bases
def test_rho_zero_is_the_base_and_asks_for_no_part(base):
    plain, ours = mlp(), mlp()
    train_steps(plain, base(plain.parameters()), 4)
    assert take(ours, StaleSAM(base(ours.parameters()), rho=0.0).follow(ours), 4) == 0
    assert same(plain.state_dict(), ours.state_dict())
    assert take(ours, StaleSAM(base(ours.parameters()), rho=Late(0.3, after=3)).follow(ours), 6) == 4  # of 3 to 6


def test_running_statistics_do_not_count_the_part():
    model, other = mlp(), mlp()
    optimizer = StaleSAM(sgd(model.parameters(), lr=0.0), rho=0.0).follow(model)
    perturbing = StaleSAM(sgd(other.parameters(), lr=0.0), rho=1e-9).follow(other)
    take(model, optimizer, 3)
    assert take(other, perturbing, 3) == 3
    assert model[1].num_batches_tracked == other[1].num_batches_tracked == 3
    torch.testing.assert_close(model[1].running_mean, other[1].running_mean)


@bases
@pytest.mark.parametrize("method", ["static", "rigl", "mest", "gmp"])
@pytest.mark.parametrize("options", [{}, {"compact": True}, {"adaptive": True}, {"in_place": True}], ids=str)
def test_with_masks_it_lives_on_active_weights_and_goes_on_after_a_resume(base, method, options):
    def make(seed=0):
        model = conv_net(seed)
        optimizer = StaleSAM(base(model.parameters()), rho=0.5, **options)
        every = {} if method == "static" else {"every": 3}
        return model, optimizer, fs.sparsify(model, optimizer, method, sparsity=0.7, steps=12, **every)

    parts, resumed = make(), make(1)
    take(*parts[:2], 5)
    for other, part in zip(resumed, parts, strict=True):
        other.load_state_dict(saved(part.state_dict()))
    model, optimizer, training = parts
    for step in range(5, 12):
        w = weights(model)
        backward(model, step)
        moved = shift(model, w)
        assert norm(moved) > 0
        if not options.get("adaptive"):
            assert norm(moved) == close(0.5)
        for name, mask in training.masks.items():
            assert not model.get_parameter(name)[~mask].any()
        optimizer.step(part=lambda step=step: part_of(model, step))
        optimizer.zero_grad()
    take(*resumed[:2], 7, start=5)
    assert same(parts[0].state_dict(), resumed[0].state_dict())
    assert same(parts[1].state_dict(), resumed[1].state_dict())


def test_the_rules_and_the_base_see_the_gradient_of_the_step():
    model = mlp(norm=False)
    optimizer, seen = StaleSAM(sgd(model.parameters()), rho=0.3).follow(model), []
    optimizer.base.register_step_pre_hook(lambda *_: seen.append(gradients(model)))
    backward(model)
    expected = gradients(model)
    optimizer.step(part=lambda: part_of(model, 0))
    assert same(seen[0], expected)
    assert same(gradients(model), expected)


def test_gradients_that_are_views_survive_the_part():
    model = mlp(norm=False)
    sizes = [p.numel() for p in model.parameters()]
    bucket = torch.zeros(sum(sizes))
    views = [v.view_as(p) for v, p in zip(bucket.split(sizes), model.parameters(), strict=True)]
    optimizer, seen = StaleSAM(sgd(model.parameters()), rho=0.3).follow(model), []
    optimizer.base.register_step_pre_hook(lambda *_: seen.append(gradients(model)))
    for p, view in zip(model.parameters(), views, strict=True):
        p.grad = view.fill_(1.0)

    def part():
        for p, view in zip(model.parameters(), views, strict=True):
            p.grad = view.fill_(2.0)

    optimizer.step(part=part)
    assert all((g == 1).all() for g in seen[0])


def test_an_error_in_the_part_leaves_the_gradient_and_the_weights():
    model = mlp(norm=False)
    optimizer = StaleSAM(sgd(model.parameters()), rho=0.3).follow(model)
    take(model, optimizer, 2)
    w = weights(model)
    backward(model, 2)
    expected = gradients(model)

    def part():
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        optimizer.step(part=part)
    assert same(gradients(model), expected)
    assert same(weights(model), w)


def test_copies_go_on_and_a_part_is_needed():
    optimizer = StaleSAM(sgd(mlp().parameters()), rho=0.25)
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert other.param_groups[0]["rho"] == 0.25
        assert other.direction == optimizer.direction
    with pytest.raises(fs.InputError, match=r"\AStaleSAM\.step\(\) needs part=.*\Z"):
        optimizer.step()
