"""The perturbation from a training forward to the step: what is seen meanwhile, what restores w, which models it is on."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import flatsparse as fs
from tests.helpers import (
    backward,
    bases,
    batch,
    close,
    gradients,
    loss_at,
    mlp,
    norm,
    s2sam,
    same,
    sgd,
    shift,
    train_steps,
    weights,
)

pytestmark = pytest.mark.filterwarnings("error")


def prepared(make=mlp, base=sgd, rho=0.5):
    """A followed model whose next training forward is perturbed, its optimizer, and its w."""
    model = make()
    optimizer = s2sam(model, base, rho=rho)
    train_steps(model, optimizer, 2)
    return model, optimizer, weights(model)


# -- w comes back -----------------------------------------------------------------------------------------------------


@bases
def test_restoring_gives_w_back_bit_for_bit(base):
    model, optimizer, w = prepared(base=base)
    with optimizer.perturbed():
        assert norm(shift(model, w)) == close(0.5)
    assert same(weights(model), w)
    loss_at(model)
    assert norm(shift(model, w)) == close(0.5)
    optimizer.eval()
    assert same(weights(model), w)


def test_step_moves_w_and_not_the_perturbed_weights():
    model, optimizer, w = prepared(base=lambda ps: sgd(ps, lr=0.0))
    backward(model, 2)
    optimizer.step()
    assert same(weights(model), w)


def test_an_exception_inside_perturbed_gives_w_back():
    model, optimizer, w = prepared()
    with pytest.raises(RuntimeError, match="lost"), optimizer.perturbed():
        raise RuntimeError("lost")
    assert same(weights(model), w)


@pytest.mark.parametrize("grad", [True, False])
def test_an_exception_inside_a_forward_loses_nothing(grad):
    model, optimizer, w = prepared()
    loss_at(model)
    u = weights(model)
    with pytest.raises(RuntimeError), torch.set_grad_enabled(grad):
        model(torch.zeros(8, 5))
    assert same(weights(model), u)
    optimizer.eval()
    assert same(weights(model), w)
    with pytest.raises(RuntimeError), torch.set_grad_enabled(grad):
        model(torch.zeros(8, 5))
    optimizer.eval()
    assert same(weights(model), w)
    backward(model)
    assert same(weights(model), u)


def test_an_exception_in_a_closure_gives_w_back():
    model, optimizer, w = prepared()

    def closure():
        backward(model)
        raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        optimizer.step(closure)
    assert same(weights(model), w)


def test_only_a_training_forward_with_gradients_is_perturbed():
    model, optimizer, w = prepared()
    with torch.no_grad():
        model(batch()[0])
    assert same(weights(model), w)
    model.eval()
    loss_at(model)
    assert same(weights(model), w)
    assert not optimizer.is_perturbed
    model.train()
    loss_at(model)
    assert optimizer.is_perturbed


def test_a_hook_that_was_there_before_sees_the_perturbed_weights():
    model, seen = mlp(), []
    model.register_forward_pre_hook(lambda module, args: seen.append(weights(module)))
    optimizer = s2sam(model, rho=0.5)
    train_steps(model, optimizer, 2)
    w = weights(model)
    loss_at(model)
    assert same(seen[-1], weights(model))
    assert not same(seen[-1], w)


# -- seen while perturbed ----------------------------------------------------------------------------------------------


def evaluate(model, mode):
    model.eval()
    with mode():
        output = model(batch(99)[0])
    model.train()
    return output.clone()


@bases
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("moment", ["before forward", "before backward", "after backward", "always"])
def test_evaluation_sees_w_and_leaves_the_pending_gradient(base, mode, moment):
    model, optimizer, w = prepared(base=base)
    alone, other, _ = prepared(base=base)
    seen = []

    def moments(name):
        if moment in (name, "always"):
            twin = mlp()
            twin.load_state_dict(alone.state_dict())
            with torch.no_grad():
                for p, true in zip(twin.parameters(), w, strict=True):
                    p.copy_(true)
            seen.append(same(evaluate(model, mode), evaluate(twin, torch.no_grad)))

    for step in range(2):  # a second micro-batch at the same w + e
        moments("before forward")
        loss, expected = loss_at(model, step), loss_at(alone, step)
        moments("before backward")
        loss.backward()
        expected.backward()
        moments("after backward")
        assert same(loss.detach(), expected.detach())
        assert same(gradients(model), gradients(alone))
    assert seen
    assert all(seen)
    optimizer.step()
    other.step()
    assert same(model.state_dict(), alone.state_dict())
    assert same(optimizer.state_dict(), other.state_dict())


def test_evaluation_without_gradients_in_training_mode_sees_w():
    model, optimizer, _ = prepared(make=lambda: mlp(norm=False))
    with torch.no_grad():
        before = model(batch()[0])
    loss_at(model)
    with torch.no_grad():
        assert same(model(batch()[0]), before)
    assert optimizer.is_perturbed


def test_evaluation_with_gradients_restores():
    model, optimizer, w = prepared()
    loss_at(model)
    model.eval()
    loss_at(model)
    assert not optimizer.is_perturbed
    assert same(weights(model), w)


def test_optimizer_eval_restores_and_train_does_not_perturb():
    model, optimizer, w = prepared()
    loss_at(model)
    optimizer.eval()
    optimizer.train()
    assert not optimizer.is_perturbed
    assert same(weights(model), w)


def test_state_dict_while_perturbed_is_a_copy_of_w():
    model, optimizer, w = prepared()
    loss_at(model)
    u = weights(model)
    state = model.state_dict()
    named = {name: state[name] for name, _ in model.named_parameters()}
    assert same(list(named.values()), w)
    for t in named.values():
        t.zero_()
    assert same(weights(model), u)
    optimizer.eval()
    assert same(weights(model), w)
    assert list(state) == list(mlp().state_dict())


def test_state_dict_with_a_prefix_or_of_an_outer_module_gives_w():
    model, optimizer, w = prepared()
    outer = nn.ModuleDict({"net": model})
    loss_at(model)
    assert same([outer.state_dict()[f"net.{name}"] for name, _ in model.named_parameters()], w)
    assert same([model.state_dict(prefix="a.")[f"a.{name}"] for name, _ in model.named_parameters()], w)
    assert optimizer.is_perturbed


def test_shared_parameters_are_w_under_each_of_their_names():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3))
    model[1].weight = model[0].weight
    optimizer = s2sam(model, rho=0.5)
    train_steps(model, optimizer, 2)
    w = model[0].weight.detach().clone()
    loss_at(model)
    state = model.state_dict()
    assert same(state["0.weight"], w)
    assert same(state["1.weight"], w)
    assert not same(model[1].weight.detach(), w)


@pytest.mark.parametrize("whole", [True, False])
def test_load_state_dict_restores_and_its_weights_stay(whole):
    model, optimizer, _ = prepared()
    outer, new = nn.ModuleDict({"net": model}), mlp(7).state_dict()
    loss_at(model)
    if whole:
        outer.load_state_dict({f"net.{name}": t for name, t in new.items()})
    else:
        model.load_state_dict(new)
    assert not optimizer.is_perturbed
    assert same(model.state_dict(), new)
    optimizer.eval()
    assert same(model.state_dict(), new)


def test_loading_the_optimizer_restores():
    model, optimizer, w = prepared()
    state = copy.deepcopy(optimizer.state_dict())
    loss_at(model)
    optimizer.load_state_dict(state)
    assert same(weights(model), w)


# -- whom it follows --------------------------------------------------------------------------------------------------


def test_following_twice_is_following_once():
    model, optimizer, _ = prepared()
    hooks = len(model._forward_pre_hooks)
    assert optimizer.follow(model) is optimizer
    assert len(model._forward_pre_hooks) == hooks


@pytest.mark.parametrize("called", ["inner", "outer"])
@pytest.mark.parametrize("order", [["inner", "outer"], ["outer", "inner"], ["inner"]])
def test_following_a_model_and_what_wraps_it(called, order):
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, inputs):
            return self.module(inputs)

    once, twice = mlp(), mlp()
    train_steps(once, s2sam(once, rho=0.5), 4)
    models = {"inner": twice, "outer": Wrapper(twice)}
    optimizer = fs.S2SAM(sgd(twice.parameters()), rho=0.5)
    for name in order:
        optimizer.follow(models[name])
    train_steps(models[called] if called in order or called == "outer" else twice, optimizer, 4)
    assert same(once.state_dict(), twice.state_dict())
    w = weights(twice)
    loss_at(models[called])
    assert not same(weights(twice), w)
    with torch.no_grad():
        seen = models[called](batch()[0])
    assert not same(weights(twice), w)
    optimizer.eval()
    with torch.no_grad():
        assert same(models[called](batch()[0]), seen)


def test_two_optimizers_of_one_model_keep_their_own_perturbations():
    model = mlp()
    first = fs.S2SAM(sgd(model[0].parameters()), rho=0.5).follow(model)
    second = fs.S2SAM(sgd([*model[1].parameters(), *model[3].parameters()]), rho=0.2).follow(model)
    for step in range(3):
        w = weights(model)
        backward(model, step)
        e = shift(model, w)
        assert [norm(e[:1]), norm(e[1:])] == ([close(0.5), close(0.2)] if step else [0.0, 0.0])
        state = model.state_dict()
        assert same([state[name] for name, _ in model.named_parameters()], w)
        for optimizer in (first, second):
            optimizer.step()
            optimizer.zero_grad()


def test_following_keeps_neither_model_nor_optimizer_alive():
    import gc
    import weakref

    model, optimizer, _ = prepared()
    alive = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert alive() is None
    backward(model)  # follows nobody now


# -- traps ------------------------------------------------------------------------------------------------------------


def test_autocast_does_not_remember_the_other_weights():
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    optimizer = s2sam(model, sgd, rho=2.0)
    train_steps(model, optimizer, 2)
    inputs, _ = batch(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            true = model.eval()(inputs)
        perturbed = model.train()(inputs)
        with torch.no_grad():
            within = model.eval()(inputs)
    assert torch.equal(within, true)
    assert not torch.equal(perturbed, true)


def test_weights_rewritten_after_every_step_are_told_of():
    model = mlp()
    optimizer = s2sam(model, sgd, rho=0.01)

    def rewrite():
        for step in range(4):
            train_steps(model, optimizer, 1, start=step)
            with torch.no_grad():
                for p in model.parameters():
                    p.mul_(0.5)

    with pytest.warns(UserWarning, match="rewritten"):
        rewrite()


def test_a_tiny_gradient_in_half_precision_makes_no_infinity():
    p = torch.nn.Parameter(torch.ones(4, dtype=torch.float16))
    optimizer = fs.S2SAM(torch.optim.SGD([p], lr=0.1), rho=0.5)
    p.grad = torch.zeros_like(p)
    with pytest.warns(UserWarning, match="float16"):
        optimizer.step()
    with optimizer.perturbed():
        assert p.isfinite().all()


def test_a_sparse_gradient_is_refused_in_one_line():
    embedding = torch.nn.Embedding(5, 3, sparse=True)
    optimizer = fs.S2SAM(torch.optim.SGD(embedding.parameters(), lr=0.1))
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(fs.InputError, match="sparse=False"):
        optimizer.step()


def test_a_warning_that_is_an_error_loses_no_weights():
    model = mlp()
    optimizer = s2sam(model, rho=0.5)
    train_steps(model, optimizer, 2)
    before = weights(model)
    backward(model, 2)
    with torch.no_grad():
        model[0].weight.add_(1)
    with pytest.raises(UserWarning, match="the write is lost"):  # see pytestmark
        optimizer.eval()
    assert same(weights(model), before)
