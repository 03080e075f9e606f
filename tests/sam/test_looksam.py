"""LookSAM: the plain form, masks, and what is saved."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor

import flatsparse as fs
from flatsparse.sam.looksam import ORTHOGONAL, LookSAM
from tests.helpers import backward, bases, gradients, loss_at, mlp, norm, same, saved, sgd, weights

pytestmark = pytest.mark.filterwarnings("error")


def take(model, optimizer, steps, start=0):
    """Steps, and how many gradients each took."""
    counts = []

    def closure(step):
        optimizer.zero_grad()
        counts[-1] += 1
        return backward(model, step)

    for step in range(start, start + steps):
        counts.append(0)
        optimizer.step(lambda step=step: closure(step))
    return counts


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


@bases
@pytest.mark.parametrize("every", [1, 3])
def test_looksam_is_the_plain_loop(base, every):
    plain, ours, sam = (mlp(norm=False, dtype=torch.float64) for _ in range(3))
    reference, rho, alpha = base(plain.parameters()), 0.3, 0.6
    for step in range(8):
        backward(plain, step)
        g = flat(gradients(plain))
        if step % every == 0:
            w = weights(plain)
            with torch.no_grad():
                for p, part in zip(plain.parameters(), gradients(plain), strict=True):
                    p += rho * part / g.norm()
            reference.zero_grad()
            backward(plain, step)
            g_s = flat(gradients(plain))
            g_v = g_s - g_s.norm() * torch.cosine_similarity(g_s, g, dim=0) * g / g.norm()
            with torch.no_grad():
                for p, old in zip(plain.parameters(), w, strict=True):
                    p.copy_(old)
        else:
            g_s = g + alpha * g.norm() / g_v.norm() * g_v
            torch.nn.utils.vector_to_parameters(g_s, parts := [torch.zeros_like(p) for p in plain.parameters()])
            for p, part in zip(plain.parameters(), parts, strict=True):
                p.grad.copy_(part)
        reference.step()
        reference.zero_grad()
    counts = take(ours, LookSAM(base(ours.parameters()), rho=rho, every=every, alpha=alpha), 8)
    take(sam, fs.SAM(base(sam.parameters()), rho=rho), 8)
    assert counts == [2 if step % every == 0 else 1 for step in range(8)]
    torch.testing.assert_close(weights(ours), weights(plain), rtol=1e-9, atol=1e-11)
    assert (norm(a - b for a, b in zip(weights(ours), weights(sam), strict=True)) < 1e-9) == (every == 1)


def test_rho_zero_is_the_base_in_one_pass():
    plain, ours = mlp(), mlp()
    assert take(ours, LookSAM(sgd(ours.parameters()), rho=0.0), 4) == [1] * 4
    reference = sgd(plain.parameters())
    for step in range(4):
        backward(plain, step)
        reference.step()
        reference.zero_grad()
    assert same(plain.state_dict(), ours.state_dict())


@pytest.mark.parametrize("method", ["rigl", "set"])
def test_what_is_kept_lives_on_live_weights_and_dense_gradients_stay_for_the_rules(method):
    model = mlp(norm=False)
    optimizer = LookSAM(sgd(model.parameters()), rho=0.3, every=4)
    training = fs.sparsify(model, optimizer, method, sparsity=0.5, steps=40, every=3, until=1.0)
    before = copy.deepcopy(training.masks)
    named = dict(model.named_parameters())
    for step in range(20):
        take(model, optimizer, 1, start=step)
        for name, mask in training.masks.items():
            assert not named[name][~mask].any()
            assert not optimizer.state[named[name]][ORTHOGONAL][~mask].any()
    assert any(not torch.equal(before[name], mask) for name, mask in training.masks.items())


def test_a_step_between_adds_alpha_of_the_live_gradient_norm():
    model = mlp(norm=False)
    optimizer = LookSAM(torch.optim.SGD(model.parameters(), lr=1.0), rho=0.3, every=4, alpha=0.5)
    training = fs.sparsify(model, optimizer, "static", sparsity=0.5, steps=10)
    take(model, optimizer, 1)
    optimizer.zero_grad()
    backward(model, 1)
    live = [
        g * training.masks[n] if n in training.masks else g
        for n, g in zip(dict(model.named_parameters()), gradients(model), strict=True)
    ]
    w = weights(model)
    take(model, optimizer, 1, start=1)
    added = [old - p.detach() - g for old, p, g in zip(w, model.parameters(), live, strict=True)]
    assert norm(added) == pytest.approx(0.5 * norm(live), rel=1e-4)


@bases
def test_resume_equals_never_having_stopped(base):
    straight, model, other = mlp(), mlp(), mlp(1)
    options = {"rho": 0.3, "every": 4}
    take(straight, LookSAM(base(straight.parameters()), **options), 9)
    optimizer = LookSAM(base(model.parameters()), **options)
    resumed = LookSAM(base(other.parameters()), **options)
    take(model, optimizer, 6)
    other.load_state_dict(saved(model.state_dict()))
    resumed.load_state_dict(saved(optimizer.state_dict()))
    take(other, resumed, 3, start=6)
    assert same(straight.state_dict(), other.state_dict())


def test_the_state_of_a_base_alone_begins_with_a_sam_step():
    model = mlp()
    optimizer = LookSAM(sgd(model.parameters()), every=4)
    assert take(model, optimizer, 2) == [2, 1]
    plain = sgd(mlp().parameters())
    optimizer.load_state_dict(plain.state_dict())
    assert take(model, optimizer, 2) == [2, 1]
    optimizer.reset_state()
    assert take(model, optimizer, 1) == [2]


def test_copies_keep_their_options():
    optimizer = LookSAM(sgd(mlp().parameters()), every=3, alpha=0.25)
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert (other.every, other.alpha) == (3, 0.25)


@pytest.mark.parametrize(("options", "line"), [({"every": 0}, "every 0"), ({"alpha": -1.0}, r"alpha -1\.0")])
def test_options_that_cannot_be_are_refused(options, line):
    with pytest.raises(fs.InputError, match=line):
        LookSAM(sgd(mlp().parameters()), **options)
    with pytest.raises(fs.InputError, match="needs a closure"):
        LookSAM(sgd(mlp().parameters())).step()


def test_a_second_closure_without_gradients_leaves_nothing_to_keep():
    model = mlp()
    optimizer = LookSAM(sgd(model.parameters()), rho=0.05, every=2)
    calls = []

    def closure():
        optimizer.zero_grad()
        calls.append(loss_at(model))
        if len(calls) % 3 != 2:
            calls[-1].backward()
        return calls[-1]

    for _ in range(4):
        optimizer.step(closure)
    assert all(p.isfinite().all() for p in model.parameters())
