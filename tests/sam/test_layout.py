"""What a step keeps from the last: whatever changes in between, the perturbed weights are those of the formula."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import flatsparse as fs
from flatsparse.common.errors import InputError
from flatsparse.sam import kernel
from flatsparse.sam.layout import Layout
from tests.helpers import batch, mlp, same, sgd, train_steps

RHO = 0.5


def two_groups(model):
    matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) == many] for many in (True, False))
    return sgd([{"params": matrices}, {"params": vectors, "rho": 0.2}])


def step(model, optimizer, number):
    inputs, targets = batch(number, dtype=next(model.parameters()).dtype)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(inputs), targets).backward()
    optimizer.step()


def of_the_formula(optimizer):
    """The perturbed weights in plain form, of every parameter that has a gradient and a ρ, by parameter."""
    perturbed = [(p, g["rho"]) for g in optimizer.param_groups if g["rho"] for p in g["params"] if p.grad is not None]
    length = torch.cat([p.grad.flatten().double() for p, _ in perturbed]).norm()
    return {p: (p.detach().double() + rho * p.grad.double() / length).to(p.dtype) for p, rho in perturbed}


def assert_of_the_formula(optimizer):
    kept, expected = optimizer.perturbation.weights.kept(), of_the_formula(optimizer)
    assert set(kept) == set(expected)
    for p, u in kept.items():
        torch.testing.assert_close(u, expected[p])


def move_storage(model, optimizer):
    for p in model.parameters():
        p.data = p.data.clone()


def turn_layout(model, optimizer):
    model[0].weight.data = model[0].weight.data.T.contiguous().T


def cast(model, optimizer):
    model.double()
    for entry in optimizer.state.values():
        entry["momentum_buffer"] = entry["momentum_buffer"].double()


def clear_state(model, optimizer):
    optimizer.state.clear()


def new_entries(model, optimizer):
    for p, entry in optimizer.state.items():
        optimizer.state[p] = {key: value.clone() for key, value in entry.items()}


def drop_a_perturbed(model, optimizer):
    del optimizer.state[model[1].bias]["perturbed"]


def freeze(model, optimizer):
    model[3].bias.requires_grad_(False)
    model[3].bias.grad = None


def swap_groups(model, optimizer):
    optimizer.param_groups.reverse()


def move_a_parameter(model, optimizer):
    optimizer.param_groups[1]["params"].append(optimizer.param_groups[0]["params"].pop())


def turn_off_a_group(model, optimizer):
    optimizer.param_groups[0]["rho"] = 0.0


def change_rho(model, optimizer):
    optimizer.param_groups[1]["rho"] = 0.9


def remove_a_parameter(model, optimizer):
    optimizer.state.pop(optimizer.param_groups[0]["params"].pop(0))


def load(model, optimizer):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


CHANGES = (
    *(
        move_storage,
        turn_layout,
        cast,
        clear_state,
        new_entries,
        drop_a_perturbed,
        freeze,
        swap_groups,
        move_a_parameter,
    ),
    *(turn_off_a_group, change_rho, remove_a_parameter, load),
)


@pytest.mark.parametrize("with_kernel", [False, True], ids=["plain", "kernel"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_after_any_change_the_perturbed_weights_are_those_of_the_formula(change, with_kernel):
    if with_kernel:
        try:
            kernel.library()
        except InputError as problem:
            pytest.skip(str(problem))
    model = mlp()
    optimizer = fs.S2SAM(two_groups(model), rho=RHO, kernel=with_kernel).follow(model)
    for number in range(3):
        step(model, optimizer, number)
        assert_of_the_formula(optimizer)
    change(model, optimizer)
    for number in range(3, 6):
        step(model, optimizer, number)
        assert_of_the_formula(optimizer)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_after_any_change_the_compiled_step_is_the_plain_one(change):
    ends = []
    for with_kernel in (False, True):
        model = mlp()
        try:
            optimizer = fs.S2SAM(two_groups(model), rho=RHO, kernel=with_kernel).follow(model)
        except InputError as problem:
            pytest.skip(str(problem))
        for number in range(6):
            if number == 3:
                change(model, optimizer)
            step(model, optimizer, number)
        ends.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)


def test_steps_share_one_layout_while_nothing_changes(monkeypatch):
    made = []
    own = Layout.of
    monkeypatch.setattr(Layout, "of", lambda *args: (made.append(1), own(*args))[-1])
    model = mlp()
    optimizer = fs.S2SAM(sgd(model.parameters()), rho=RHO).follow(model)
    train_steps(model, optimizer, 5)
    assert len(made) == 1


def test_a_sparse_gradient_is_refused_whenever_it_comes():
    embedding = nn.Embedding(5, 3)
    optimizer = fs.S2SAM(torch.optim.SGD(embedding.parameters(), lr=0.1), rho=RHO).follow(embedding)
    embedding(torch.arange(5)).sum().backward()
    optimizer.step()
    embedding.sparse = True
    optimizer.zero_grad()
    embedding(torch.arange(5)).sum().backward()
    with pytest.raises(InputError, match="sparse=False"):
        optimizer.step()


def test_a_direction_without_some_parameters_perturbs_the_others():
    model = mlp()
    known = list(model.parameters())
    left_out = []

    def direction(optimizer, gradients):
        return {p: None if any(p is q for q in left_out) else g for p, g in gradients.items()}

    optimizer = fs.S2SAM(sgd(model.parameters()), rho=RHO, direction=direction).follow(model)
    train_steps(model, optimizer, 2)
    left_out.append(known[0])
    train_steps(model, optimizer, 2, start=2)
    assert set(optimizer.perturbation.weights.kept()) == set(known[1:])


def test_copies_share_nothing_with_their_original():
    model = mlp()
    optimizer = fs.S2SAM(sgd(model.parameters()), rho=RHO).follow(model)
    train_steps(model, optimizer, 3)
    other, theirs = copy.deepcopy((model, optimizer))
    theirs.follow(other)
    for one, its in ((optimizer, model), (theirs, other)):
        train_steps(its, one, 3, start=3)
    assert same([p.detach() for p in model.parameters()], [p.detach() for p in other.parameters()])
