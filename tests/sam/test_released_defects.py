"""Defects of the optimizer that Ji et al. (2024) released, by the numbers of our notes; none may come back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import flatsparse as fs
from tests.helpers import backward, close, conv_net, mlp, norm, s2sam, same, saved, sgd, shift, train_steps, weights

pytestmark = pytest.mark.filterwarnings("error")


def test_d1_clearing_gradients_to_none_does_not_switch_the_perturbation_off():
    model = mlp()
    optimizer = s2sam(model)
    for step in range(4):
        w = weights(model)
        backward(model, step)
        assert norm(shift(model, w)) == close(0.05 if step else 0.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        assert all(p.grad is None for p in model.parameters())


def sparse_run(steps=12):
    """A masked run, step by step, with the weights before each perturbation."""
    model = conv_net()
    optimizer = fs.S2SAM(sgd(model.parameters()), rho=0.05)
    training = fs.sparsify(model, optimizer, "rigl", sparsity=0.7, steps=20, every=4)
    for step in range(steps):
        w = weights(model)
        backward(model, step)
        yield model, optimizer, training, w
        optimizer.step()
        optimizer.zero_grad()


def test_d1b_masked_training_survives_gradients_of_none():
    *_, (model, _, training, _) = sparse_run()
    assert training.steps_taken == 12
    assert training.sparsity == pytest.approx(0.7, abs=0.01)
    assert all(p.isfinite().all() for p in model.parameters())


def test_d2_forward_weights_and_momentum_stay_on_the_mask():
    for step, (model, optimizer, training, w) in enumerate(sparse_run()):
        assert norm(shift(model, w)) == close(0.05 if step else 0.0)
        for name, p in model.named_parameters():
            if name in training.masks:
                dead = ~training.masks[name]
                kept = [t for t in optimizer.state[p].values() if t.shape == p.shape]
                assert all(t[dead].count_nonzero() == 0 for t in [p, *kept])
                assert len(kept) == (2 if step else 0)


def test_d3_norm_is_rho_however_long_the_run():
    model = mlp()
    optimizer, found = s2sam(model, rho=0.05), []
    for step in range(100):
        w = weights(model)
        backward(model, step % 2)
        found.append(norm(shift(model, w)))
        optimizer.step()
        optimizer.zero_grad()
    assert found[1:] == [close(0.05)] * 99


def test_d5_biases_that_start_at_zero_are_trained():
    model = conv_net()
    nn.init.zeros_(model[-1].bias)
    optimizer = fs.S2SAM(sgd(model.parameters()))
    training = fs.sparsify(model, optimizer, "static", sparsity=0.7, steps=20)
    train_steps(model, optimizer, 3)
    assert not any("bias" in name for name in training.masks)
    assert model[-1].bias.count_nonzero() == 3
    assert model[2].bias.count_nonzero() > 0


def test_d6_a_scheduler_that_steps_after_the_optimizer_skips_no_rate():
    model = mlp()
    optimizer, rates = s2sam(model), []
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    for step in range(3):
        rates.append(optimizer.base.param_groups[0]["lr"])
        train_steps(model, optimizer, 1, start=step)
        scheduler.step()
    assert rates == [0.1, 0.05, 0.025]


def test_d9_the_state_has_momentum_and_schedulers_reach_the_base_after_a_load():
    model = mlp()
    optimizer = s2sam(model)
    train_steps(model, optimizer, 2)
    state = saved(optimizer.state_dict())
    assert all("momentum_buffer" in entry for entry in state["state"].values())
    assert len(state["state"]) == len(list(model.parameters()))
    optimizer.load_state_dict(state)
    assert optimizer.param_groups is optimizer.base.param_groups
    assert optimizer.state is optimizer.base.state
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    train_steps(model, optimizer, 1)
    scheduler.step()
    assert optimizer.base.param_groups[0]["lr"] == 0.05


def test_d10_a_step_without_a_perturbation_subtracts_no_old_perturbation():
    model = mlp()
    optimizer = fs.S2SAM(sgd(model.parameters(), lr=0.0), rho=0.5)
    w = weights(model)
    with optimizer.perturbed():
        backward(model)
    optimizer.step()
    with optimizer.perturbed():
        backward(model)
    optimizer.step()
    with pytest.warns(UserWarning, match="perturbed"):
        optimizer.step()
    assert same(weights(model), w)


def test_d11_a_parameter_without_gradient_is_left_alone():
    model = mlp()
    lonely = nn.Parameter(torch.ones(3))
    optimizer = fs.S2SAM(sgd([*model.parameters(), lonely])).follow(model)
    train_steps(model, optimizer, 3)
    assert same(lonely.detach(), torch.ones(3))


def test_d12_one_extra_buffer_and_not_three():
    model = mlp()
    optimizer = s2sam(model, lambda ps: torch.optim.SGD(ps, lr=0.1))
    train_steps(model, optimizer, 3)
    for p in model.parameters():
        assert sum(t.nbytes for t in optimizer.state[p].values() if isinstance(t, torch.Tensor)) == p.nbytes


def test_d13_step_returns_the_loss_of_its_closure():
    model = mlp()
    assert s2sam(model).step(lambda: backward(model)).item() > 0
