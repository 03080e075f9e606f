"""SAM: two gradients a step, by closure or inside `perturbed()`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import flatsparse as fs
from tests.helpers import (
    backward,
    bases,
    batch,
    close,
    conv_net,
    gradients,
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


def closures(model, optimizer, step, seen=None):
    """A closure that also notes at which weights it was called."""

    def closure():
        optimizer.zero_grad()
        if seen is not None:
            seen.append(weights(model))
        return backward(model, step)

    return closure


def sam_steps(model, optimizer, steps, start=0):
    for step in range(start, start + steps):
        optimizer.step(closures(model, optimizer, step))


@bases
def test_sam_is_the_plain_two_pass_loop(base):
    plain, ours, blunt = (mlp(norm=False, dtype=torch.float64) for _ in range(3))
    reference, rho = base(plain.parameters()), 0.3
    for step in range(6):
        w = weights(plain)
        backward(plain, step)
        with torch.no_grad():
            for p, g in zip(plain.parameters(), first := gradients(plain), strict=True):
                p += rho * g / norm(first)
        reference.zero_grad()
        backward(plain, step)
        with torch.no_grad():
            for p, old in zip(plain.parameters(), w, strict=True):
                p.copy_(old)
        reference.step()
        reference.zero_grad()
    sam_steps(ours, fs.SAM(base(ours.parameters()), rho=rho), 6)
    train_steps(blunt, base(blunt.parameters()), 6)
    torch.testing.assert_close(weights(ours), weights(plain), rtol=1e-9, atol=1e-11)
    assert norm(shift(blunt, weights(plain))) > 1e-3


@bases
def test_rho_zero_is_the_base_in_one_pass(base):
    plain, ours, unclosed, seen = mlp(), mlp(), mlp(), []
    train_steps(plain, base(plain.parameters()), 4)
    optimizer = fs.SAM(base(ours.parameters()), rho=0.0)
    for step in range(4):
        optimizer.step(closures(ours, optimizer, step, seen))
    train_steps(unclosed, fs.SAM(base(unclosed.parameters()), rho=0.0), 4)
    assert len(seen) == 4
    assert same(plain.state_dict(), ours.state_dict())
    assert same(plain.state_dict(), unclosed.state_dict())


def test_two_passes_at_w_and_at_norm_rho_from_it_return_the_loss_at_w():
    model = mlp()
    optimizer = fs.SAM(sgd(model.parameters()), rho=0.5)
    for step in range(3):
        w, seen, losses = weights(model), [], []
        closure = closures(model, optimizer, step, seen)

        def noted(closure=closure, losses=losses):
            losses.append(closure())
            return losses[-1]

        assert optimizer.step(noted) is losses[0]
        assert len(seen) == 2
        assert same(seen[0], w)
        assert norm(u - v for u, v in zip(seen[1], w, strict=True)) == close(0.5)


def test_each_group_is_perturbed_by_its_own_rho():
    model, seen = mlp(), []
    groups = [
        {"params": model[0].parameters(), "rho": 0.0},
        {"params": [*model[1].parameters(), *model[3].parameters()]},
    ]
    optimizer = fs.SAM(sgd(groups), rho=0.4)
    optimizer.step(closures(model, optimizer, 0, seen))
    by_parameter = [norm([u - w]) for w, u in zip(*seen, strict=True)]
    assert by_parameter[0] == 0
    assert norm(torch.tensor(by_parameter[1:])) == close(0.4)


@bases
@pytest.mark.parametrize("inside", [True, False])
def test_perturbed_equals_the_closure_with_the_step_inside_or_after(base, inside):
    closed, explicit = mlp(), mlp()
    sam_steps(closed, fs.SAM(base(closed.parameters()), rho=0.5), 4)
    optimizer = fs.SAM(base(explicit.parameters()), rho=0.5)
    for step in range(4):
        backward(explicit, step)
        with optimizer.perturbed():
            optimizer.zero_grad()
            backward(explicit, step)
            if inside:
                optimizer.step()
        if not inside:
            optimizer.step()
        optimizer.zero_grad()
    assert same(closed.state_dict(), explicit.state_dict())


def test_the_second_gradient_does_not_add_to_the_first():
    clearing, trusting = mlp(), mlp()
    sam_steps(clearing, fs.SAM(sgd(clearing.parameters()), rho=0.5), 3)
    optimizer = fs.SAM(sgd(trusting.parameters()), rho=0.5)
    for step in range(3):
        optimizer.step(lambda step=step: backward(trusting, step))
        optimizer.zero_grad()
    assert same(clearing.state_dict(), trusting.state_dict())


def test_a_step_without_a_second_gradient_is_refused():
    model = mlp()
    optimizer = fs.SAM(sgd(model.parameters()))
    backward(model)
    with pytest.raises(fs.InputError, match=r"\ASAM\.step\(\).*closure.*\Z"):
        optimizer.step()
    with optimizer.perturbed():
        backward(model)
    optimizer.step()
    with pytest.raises(fs.InputError, match="closure"):  # the second gradient of the last step does not count
        optimizer.step()


@pytest.mark.parametrize("followed", [True, False])
@pytest.mark.parametrize("make", [mlp, conv_net])
def test_batch_norm_counts_each_batch_once_at_w(followed, make):
    model, once = make(), make()
    optimizer = fs.SAM(sgd(model.parameters(), lr=0.0), rho=0.5)
    if followed:
        optimizer.follow(model)
    sam_steps(model, optimizer, 3)
    for step in range(3):
        once(batch(step)[0])
    assert same(dict(model.named_buffers()), dict(once.named_buffers()))


@pytest.mark.parametrize("lost", ["first", "second"])
def test_an_exception_in_a_closure_leaves_w_and_statistics(lost):
    model = mlp()
    optimizer = fs.SAM(sgd(model.parameters()), rho=0.5)
    sam_steps(model, optimizer, 2)
    w, calls = weights(model), []

    def closure():
        optimizer.zero_grad()
        calls.append(dict(model.named_buffers())["1.num_batches_tracked"].item())
        backward(model)
        if len(calls) == (1 if lost == "first" else 2):
            raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        optimizer.step(closure)
    assert not optimizer.is_perturbed
    assert same(weights(model), w)
    assert model[1].num_batches_tracked == calls[0] + 1


@pytest.mark.parametrize("mask_perturbation", [True, False])
def test_with_masks_the_second_pass_is_sparse_unless_asked_otherwise(mask_perturbation):
    model = conv_net()
    optimizer = fs.SAM(sgd(model.parameters()), rho=0.5, mask_perturbation=mask_perturbation)
    training = fs.sparsify(model, optimizer, "static", sparsity=0.7, steps=20)
    for step in range(3):
        seen = []
        optimizer.step(closures(model, optimizer, step, seen))
        assert norm(u - w for w, u in zip(*seen, strict=True)) == close(0.5)
        for (name, p), u in zip(model.named_parameters(), seen[1], strict=True):
            if name in training.masks:
                dead = ~training.masks[name]
                assert (u[dead].count_nonzero() == 0) == mask_perturbation
                assert p[dead].count_nonzero() == 0


def test_perturbed_leaves_the_gradients_of_live_weights():
    model = conv_net()
    optimizer = fs.SAM(sgd(model.parameters()), rho=0.5)
    training = fs.sparsify(model, optimizer, "static", sparsity=0.7, steps=20)
    backward(model)
    g = gradients(model)
    for (name, _), mine in zip(model.named_parameters(), g, strict=True):
        if name in training.masks:
            mine[~training.masks[name]] = 0
    with optimizer.perturbed():
        assert same(gradients(model), g)


def test_no_hook_stays_behind():
    model, hooks = mlp(), nn.modules.module._global_forward_pre_hooks
    before = len(hooks)
    sam_steps(model, fs.SAM(sgd(model.parameters())), 2)
    assert len(hooks) == before


def test_evaluation_inside_perturbed_sees_w():
    model, twin = mlp(norm=False), mlp(norm=False)
    optimizer = fs.SAM(sgd(model.parameters()), rho=0.5).follow(model)
    backward(model)
    with optimizer.perturbed():
        u = weights(model)
        with torch.no_grad():
            assert same(model(batch()[0]), twin(batch()[0]))
        assert same(model.state_dict(), twin.state_dict())
        assert same(weights(model), u)
    assert norm(shift(twin, u)) == close(0.5)
    assert same(weights(model), weights(twin))


@bases
def test_resume_equals_never_having_stopped(base):
    model, other = mlp(), mlp(1)
    optimizer, resumed = (fs.SAM(base(m.parameters()), rho=0.5) for m in (model, other))
    sam_steps(model, optimizer, 3)
    other.load_state_dict(saved(model.state_dict()))
    resumed.load_state_dict(saved(optimizer.state_dict()))
    sam_steps(model, optimizer, 3, start=3)
    sam_steps(other, resumed, 3, start=3)
    assert same(model.state_dict(), other.state_dict())


def test_it_keeps_nothing_between_steps():
    model = mlp()
    optimizer = fs.SAM(sgd(model.parameters()), rho=0.5)
    sam_steps(model, optimizer, 2)
    assert all(set(entry) == {"momentum_buffer"} for entry in optimizer.state.values())
    assert not optimizer.perturbation.weights.kept()


def test_sam_and_s2sam_differ():
    ours, theirs = mlp(), mlp()
    train_steps(ours, s2sam(ours, rho=0.5), 3)
    sam_steps(theirs, fs.SAM(sgd(theirs.parameters()), rho=0.5), 3)
    assert not same(weights(ours), weights(theirs))


def test_parameters_without_gradient_are_no_trouble():
    model = nn.ModuleDict({"used": nn.Linear(6, 3), "unused": nn.Linear(6, 3)})
    optimizer, seen = fs.SAM(sgd(model.parameters()), rho=0.5), []

    def closure():
        optimizer.zero_grad()
        seen.append(weights(model))
        return backward(model["used"])

    optimizer.step(closure)
    assert same(seen[0][2:], seen[1][2:])
    assert norm(u - w for w, u in zip(*seen, strict=True)) == close(0.5)


def test_the_second_pass_is_another_pass_under_autocast():
    model = mlp()
    optimizer = fs.SAM(sgd(model.parameters()), rho=2.0).follow(model)
    losses = []

    def closure():
        optimizer.zero_grad()
        inputs, targets = batch(0)
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        losses.append(loss.item())
        return loss

    with torch.autocast("cpu", dtype=torch.bfloat16):
        optimizer.step(closure)
    assert losses[1] > losses[0]
