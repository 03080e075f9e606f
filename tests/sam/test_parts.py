"""Parts of a followed model that are called, evaluated or saved by themselves."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flatsparse as fs
from tests.helpers import adamw, batch, copied, loss_at, mlp, s2sam, same, saved, sgd

pytestmark = pytest.mark.filterwarnings("error")


class Holder(nn.Module):
    """A model whose net may be called by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)


class Headed(Holder):
    """One that also holds a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs) + self.head(torch.ones(2, 16)).sum()


def noting(net: nn.Module, optimizer: fs.S2SAM) -> list[bool]:
    """A list that grows by whether the weights are perturbed, with each forward of a net in training mode."""
    seen: list[bool] = []
    net[0].register_forward_pre_hook(lambda module, args: seen.append(optimizer.is_perturbed))
    return seen


def train(net: nn.Module, optimizer: fs.S2SAM, steps: range, parts: int = 1) -> None:
    for step in steps:
        for part in range(parts):
            loss_at(net, parts * step + part).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("order", ["follow-load", "load-follow"])
def test_a_part_is_perturbed_in_the_first_step_after_a_load_too(order, parts):
    whole = Holder()
    optimizer = s2sam(whole, adamw)
    train(whole.net, optimizer, range(4), parts)
    files = saved((whole.state_dict(), optimizer.state_dict()))
    again = Holder()
    loaded = fs.S2SAM(adamw(again.parameters()))
    again.load_state_dict(files[0])
    for act in order.split("-"):
        loaded.follow(again) if act == "follow" else loaded.load_state_dict(files[1])
    seen = noting(again.net, loaded)
    train(again.net, loaded, range(4, 7), parts)
    train(whole.net, optimizer, range(4, 7), parts)
    assert all(seen)
    assert len(seen) == 3 * parts
    assert same(dict(again.state_dict()), dict(whole.state_dict()))


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.modules())


def test_the_hooks_of_parts_go_after_a_step_and_stay_where_steps_have_several_forwards():
    model = Holder()
    optimizer = s2sam(model)
    before = hooks(model)
    train(model, optimizer, range(3))
    every = len(list(model.modules()))
    assert hooks(model) == before + every  # the coming step, the fourth, is inspected
    train(model, optimizer, range(1))
    assert hooks(model) == before
    train(model, optimizer, range(2), parts=2)
    train(model, optimizer, range(10), parts=2)
    assert hooks(model) == before + 1  # on its net, and on no layer: those would cost more


def every_hook(model: nn.Module) -> int:
    """The number of hooks on a model's modules and parameters."""
    on_modules = sum(len(hooks) for m in model.modules() for name, hooks in vars(m).items() if name.endswith("_hooks"))
    return on_modules + sum(len(p._post_accumulate_grad_hooks or ()) for p in model.parameters())


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_no_hook_outlives_its_optimizer(steps):
    """An optimizer may end between a load, or a step, and the step that would take hooks away."""
    model = Holder()
    before = every_hook(model)
    first = s2sam(model)
    train(model, first, range(2))
    file = saved(first.state_dict())
    for parts in (1, 2):
        optimizer = s2sam(model)
        optimizer.load_state_dict(file)
        train(model, optimizer, range(steps), parts)
        assert every_hook(model) > before
    del first, optimizer
    gc.collect()
    assert every_hook(model) == before


def test_a_model_that_is_no_longer_followed_has_no_hook_on_its_modules():
    model = Holder()
    before = hooks(model)
    optimizer = s2sam(model)
    train(model, optimizer, range(3), parts=2)
    optimizer.unfollow()
    assert hooks(model) == before


def test_a_model_that_is_called_with_several_parts_once_each_has_no_hooks_more():
    first, second = mlp(0), mlp(1)
    optimizer = fs.S2SAM(sgd([*first.parameters(), *second.parameters()])).follow(first).follow(second)
    before = hooks(first) + hooks(second)
    for step in range(5):
        (loss_at(first, step) + loss_at(second, step)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert hooks(first) + hooks(second) == before


@pytest.mark.parametrize("evaluated", ["net", "head"])
def test_a_part_is_evaluated_at_w_while_gradients_accumulate_and_they_stay_exact(evaluated):
    calm, other = Headed(), Headed()
    train(calm, s2sam(calm), range(5), parts=3)
    optimizer = s2sam(other)
    part = other.get_submodule(evaluated)
    inputs = batch(99)[0] if evaluated == "net" else torch.ones(2, 16)
    for step in range(5):
        for number in range(3):
            loss_at(other, 3 * step + number).backward()
            if step or number:  # the first step shows that there are several forwards in one
                true = copied(other.state_dict())
                plain = Headed()
                plain.load_state_dict(true)
                other.eval()
                with torch.no_grad():
                    assert same(part(inputs), plain.eval().get_submodule(evaluated)(inputs))
                other.train()
                assert optimizer.is_perturbed == (step > 0)
        optimizer.step()
        optimizer.zero_grad()
    assert same(dict(calm.state_dict()), dict(other.state_dict()))


def test_the_state_of_what_holds_all_parameters_is_w_in_a_window():
    model = Holder()
    optimizer = s2sam(model, rho=0.5)
    train(model, optimizer, range(2))
    w = copied(dict(model.net.named_parameters()))
    loss_at(model, 2)
    shown = copied(dict(model.net.named_parameters()))
    assert optimizer.is_perturbed
    assert not same(shown, w)
    for state, prefix in ((model.state_dict(), "net."), (model.net.state_dict(), "")):
        assert same({name: state[prefix + name] for name in w}, w)
    for again in (copy.deepcopy(model.net), pickle.loads(pickle.dumps(model.net))):  # a copy follows nobody
        assert same({name: again.state_dict()[name] for name in w}, shown)


class Untouched(nn.Module):
    """A model whose gradients come from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))


def test_a_closure_that_takes_no_gradient_is_no_perturbed_forward():
    """A trainer may hand ``step`` a closure that does nothing, after gradients that were taken at w."""
    model = Untouched()
    optimizer = fs.S2SAM(sgd(model.parameters()))

    def step(closure: Any) -> None:
        model.weight.grad = torch.ones(3)
        optimizer.step(closure)

    step(lambda: None)
    with pytest.warns(UserWarning, match="two steps without a perturbed forward"):
        step(lambda: None)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_closure_that_takes_its_gradient_is_a_perturbed_forward(set_to_none):
    model = mlp()
    optimizer = fs.S2SAM(sgd(model.parameters()))  # it follows nobody
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(6):

            def closure(number: int = number) -> Tensor:
                optimizer.zero_grad(set_to_none=set_to_none)
                loss = loss_at(model, number)
                loss.backward()
                return loss

            optimizer.step(closure)
