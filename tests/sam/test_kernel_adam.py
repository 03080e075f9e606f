"""The compiled pass takes Adam's step as its formula says, and keeps its state as torch does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import flatsparse as fs
from flatsparse.common.errors import InputError
from flatsparse.sam import kernel
from flatsparse.sam.kernel import Array
from tests.helpers import adamw, backward, mlp, s2sam, same, saved, train_steps, weights

GROUP = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1, "decoupled_weight_decay": True}


@pytest.fixture(autouse=True)
def _compiler():
    try:
        kernel.library()
    except InputError as problem:
        pytest.skip(str(problem))


def plain_step(w, g, m, v, taken, scale, *, lr, betas, eps, weight_decay, decoupled_weight_decay):
    """Adam's step number ``taken`` in float64 (Kingma & Ba 2015, Alg. 1; Loshchilov & Hutter 2019, Alg. 2)."""
    w, g, m, v = (t.double() for t in (w, g, m, v))
    d = g if decoupled_weight_decay else g + weight_decay * w
    m = betas[0] * m + (1 - betas[0]) * d
    v = betas[1] * v + (1 - betas[1]) * d**2
    if decoupled_weight_decay:
        w = w - lr * weight_decay * w
    w = w - lr * (m / (1 - betas[0] ** taken)) / ((v / (1 - betas[1] ** taken)).sqrt() + eps)
    return w, m, v, w + scale * g


SETTINGS = {
    "adamw": {},
    "adam": {"decoupled_weight_decay": False},
    "another": {"betas": (0.0, 0.5), "eps": 1e-3, "weight_decay": 0.0},
    "a tensor": {"lr": torch.tensor(0.01)},
}


@pytest.mark.parametrize("changed", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("threads", [1, 3])
def test_the_pass_is_the_formula_for_any_size_and_count(changed, threads):
    sizes, taken = [0, 1, 7, 511, 513, 32769, 70000], [0, 1, 2, 10, 1000, 99_999, 12_345_678]
    torch.manual_seed(0)
    w, g, m, u = ([torch.randn(size) for size in sizes] for _ in range(4))
    v = [torch.rand(size) for size in sizes]
    counts = [torch.tensor(float(t)) for t in taken]
    group = {**GROUP, **changed}
    expected = [plain_step(*own, t + 1, 0.5, **group) for *own, t in zip(w, g, m, v, taken, strict=True)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    arrays = [Array.of(own) for own in (w, g, m, v, counts, u)]
    kernel.step(kernel.BASES[torch.optim.AdamW], group, arrays[0], arrays[1], arrays[2:5], arrays[5], 0.5)
    torch.set_num_threads(before)
    for got, formula in zip(zip(w, m, v, u, strict=True), expected, strict=True):
        for a, b in zip(got, formula, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)
    assert [int(count) for count in counts] == [t + 1 for t in taken]


def test_it_agrees_with_the_plain_form_over_many_steps():
    ends = []
    for with_kernel in (False, True):
        model = nn.Linear(6, 3)
        nn.init.eye_(model.weight)
        nn.init.zeros_(model.bias)
        optimizer = s2sam(model, adamw, rho=0.2, kernel=with_kernel)
        train_steps(model, optimizer, 300)
        ends.append((weights(model), optimizer.state_dict()["state"]))
    torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("first", [False, True], ids=["plain first", "kernel first"])
def test_states_are_interchangeable_with_and_without_it(first):
    model, whole = mlp(), mlp()
    train_steps(whole, s2sam(whole, adamw, rho=0.5), 8)
    optimizer = s2sam(model, adamw, rho=0.5, kernel=first)
    train_steps(model, optimizer, 4)
    state = saved(optimizer.state_dict())
    optimizer = s2sam(model, adamw, rho=0.5, kernel=not first)
    optimizer.load_state_dict(state)
    train_steps(model, optimizer, 4, start=4)
    for entry in optimizer.state.values():
        assert set(entry) == {"step", "exp_avg", "exp_avg_sq", "perturbed"}
        assert same(entry["step"], torch.tensor(8.0))
    for a, b in zip(weights(model), weights(whole), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def differing(model, **options):
    """A base whose groups differ in everything that a group may set."""
    matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) == many] for many in (True, False))
    own = {"lr": 0.003, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.0, "rho": 0.2}
    return torch.optim.Adam([{"params": matrices}, {"params": vectors, **own}], lr=0.01, weight_decay=0.1, **options)


def test_groups_schedules_and_hooks_act_as_without_it():
    ends = []

    def double(base, *_):
        base.param_groups[0]["params"][0].grad.mul_(2)

    for with_kernel in (False, True):
        model = mlp()
        base = differing(model)
        optimizer = fs.S2SAM(base, rho=0.5, kernel=with_kernel).follow(model)
        schedule = torch.optim.lr_scheduler.ExponentialLR(base, 0.7)
        called = []
        base.register_step_pre_hook(double)
        base.register_step_post_hook(lambda *_, called=called: called.append(1))
        for number in range(8):
            train_steps(model, optimizer, 1, start=number)
            schedule.step()
        ends.append((weights(model), len(called)))
    assert ends[0][1] == ends[1][1] == 8
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=1e-4, atol=1e-5)


def test_a_parameter_that_joins_late_counts_its_own_steps():
    ends = []
    for with_kernel in (False, True):
        model = mlp()
        optimizer = s2sam(model, adamw, rho=0.5, kernel=with_kernel)
        for number in range(9):
            backward(model, number)
            if number < 3 or number == 6:
                model[3].bias.grad = None
            optimizer.step()
            optimizer.zero_grad()
        counted = [float(optimizer.state[p]["step"]) for p in model.parameters()]
        assert counted == [9.0] * (len(counted) - 1) + [5.0]
        ends.append(weights(model))
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1e-25, 1e-20, 1.0, 1e25])
def test_squares_beyond_float32_are_as_in_torch(size):
    ends = []
    for with_kernel in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(8, 4)
        optimizer = fs.S2SAM(adamw(model.parameters()), rho=0.05, kernel=with_kernel)
        for _ in range(4):
            with optimizer.perturbed():
                for p in model.parameters():
                    p.grad = torch.full_like(p, size)
            optimizer.step()
        ends.append((weights(model), list(optimizer.perturbation.weights.kept().values())))
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-7)


CHANGES = {
    "amsgrad": lambda model, optimizer: optimizer.param_groups[0].update(amsgrad=True) or keep_most(optimizer),
    "maximize": lambda model, optimizer: optimizer.param_groups[0].update(maximize=True),
    "a cast count": lambda model, optimizer: cast_counts(optimizer),
    "a deep copy": lambda model, optimizer: optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict())),
    "no state": lambda model, optimizer: optimizer.state.clear(),
}


def keep_most(optimizer):
    for entry in optimizer.state.values():
        entry["max_exp_avg_sq"] = entry["exp_avg_sq"].clone()


def cast_counts(optimizer):
    for entry in optimizer.state.values():
        entry["step"] = entry["step"].double()


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_it_asks_at_every_step_whether_it_suits(change):
    ends = []
    for with_kernel in (False, True):
        model = mlp()
        optimizer = s2sam(model, adamw, rho=0.5, kernel=with_kernel)
        train_steps(model, optimizer, 3)
        change(model, optimizer)
        train_steps(model, optimizer, 3, start=3)
        ends.append((weights(model), [float(entry["step"]) for entry in optimizer.state.values()]))
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=1e-4, atol=1e-5)
    assert ends[0][1] == ends[1][1]


@pytest.mark.parametrize("method", ["rigl", "gmp"])
def test_state_outside_the_masks_stays_zero(method):
    model = mlp()
    optimizer = s2sam(model, adamw, rho=0.5, kernel=True)
    training = fs.sparsify(model, optimizer, method, sparsity=0.6, steps=9, every=2)
    train_steps(model, optimizer, 9)
    for name, mask in training.masks.items():
        p = dict(model.named_parameters())[name]
        entry = optimizer.state[p]
        for tensor in (p, *(entry[key] for key in ("exp_avg", "exp_avg_sq", "perturbed"))):
            assert same(tensor.detach()[~mask], torch.zeros(int((~mask).sum())))
