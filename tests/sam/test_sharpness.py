"""S2SAM: what it computes, in which loops, at what cost, and what it refuses."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import flatsparse as fs
from tests.helpers import (
    adamw,
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
    sgd,
    shift,
    train_steps,
    weights,
)

pytestmark = pytest.mark.filterwarnings("error")


# -- the rule ---------------------------------------------------------------------------------------------------------


@bases
def test_s2sam_is_the_plain_loop(base):
    plain, ours, blunt = (mlp(dtype=torch.float64) for _ in range(3))
    reference, previous, rho = base(plain.parameters()), None, 0.3
    for step in range(8):
        w = weights(plain)
        if previous is not None:
            with torch.no_grad():
                for p, g in zip(plain.parameters(), previous, strict=True):
                    p += rho * g / norm(previous)
        backward(plain, step)
        previous = gradients(plain)
        with torch.no_grad():
            for p, old in zip(plain.parameters(), w, strict=True):
                p.copy_(old)
        reference.step()
        reference.zero_grad()
    train_steps(ours, s2sam(ours, base, rho=rho), 8)
    train_steps(blunt, base(blunt.parameters()), 8)
    torch.testing.assert_close(weights(ours), weights(plain), rtol=1e-9, atol=1e-11)
    assert norm(shift(blunt, weights(plain))) > 1e-3


@bases
@pytest.mark.parametrize("make", [mlp, conv_net])
def test_rho_zero_is_the_base(base, make):
    plain, ours = make(), make()
    train_steps(plain, reference := base(plain.parameters()), 5)
    train_steps(ours, optimizer := s2sam(ours, base, rho=0.0), 5)
    assert same(plain.state_dict(), ours.state_dict())
    assert same(reference.state_dict()["state"], optimizer.state_dict()["state"])


@bases
def test_first_step_is_unperturbed(base):
    plain, ours = mlp(), mlp()
    train_steps(plain, base(plain.parameters()), 1)
    train_steps(ours, s2sam(ours, base, rho=0.5), 1)
    assert same(plain.state_dict(), ours.state_dict())


CLEARINGS = {
    "none": lambda model, optimizer: optimizer.zero_grad(),
    "zeros": lambda model, optimizer: optimizer.zero_grad(set_to_none=False),
    "model": lambda model, optimizer: model.zero_grad(),
}


@bases
@pytest.mark.parametrize("clear", CLEARINGS)
def test_perturbation_has_norm_rho_from_the_second_step_on(base, clear):
    model = conv_net()
    optimizer, found = s2sam(model, base, rho=0.5), []
    for step in range(5):
        w = weights(model)
        backward(model, step)
        found.append(norm(shift(model, w)))
        optimizer.step()
        CLEARINGS[clear](model, optimizer)
    assert found == [0.0, *[close(0.5)] * 4]


def test_perturbation_points_along_the_last_gradient():
    model = mlp(norm=False)
    optimizer = s2sam(model, rho=0.5)
    backward(model, 0)
    g = gradients(model)
    optimizer.step()
    optimizer.zero_grad()
    w = weights(model)
    loss_at(model, 1)
    torch.testing.assert_close(shift(model, w), [0.5 * x / norm(g) for x in g], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_scaling_the_loss_scales_no_perturbation(factor):
    found = []
    for scale in (1.0, factor):
        model = mlp(norm=False)
        optimizer = s2sam(model, lambda ps: sgd(ps, lr=0.0), rho=0.5)
        (scale * loss_at(model)).backward()
        optimizer.step()
        w = weights(model)
        loss_at(model)
        found.append(shift(model, w))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)
    assert norm(found[1]) == close(0.5)


# -- loops people write -----------------------------------------------------------------------------------------------


@bases
def test_micro_batches_share_one_perturbation_and_add_up_to_the_batch(base):
    whole, parts = (mlp(norm=False, dtype=torch.float64) for _ in range(2))
    train_steps(whole, s2sam(whole, base, rho=0.3), 4)
    optimizer = s2sam(parts, base, rho=0.3)
    for step in range(4):
        seen = []
        for inputs, targets in zip(*(t.chunk(2) for t in batch(step, dtype=torch.float64)), strict=True):
            (nn.functional.cross_entropy(parts(inputs), targets) / 2).backward()
            seen.append(weights(parts))
        assert same(*seen)
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-8, atol=1e-10)


def test_clipping_between_backward_and_step_bounds_the_step_not_the_perturbation():
    model = mlp(norm=False)
    optimizer = s2sam(model, lambda ps: torch.optim.SGD(ps, lr=0.1), rho=0.5)
    for step in range(4):
        w = weights(model)
        backward(model, step)
        assert norm(shift(model, w)) == close(0.5 if step else 0.0)
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
        optimizer.zero_grad()
        assert norm(shift(model, w)) == pytest.approx(0.1 * 0.01, rel=1e-3)


def scaled_step(model, optimizer, scaler, step, spoil=False):
    scaler.scale(loss_at(model, step)).backward()
    if spoil:
        next(model.parameters()).grad[0] = math.inf
    scaler.step(optimizer)
    scaler.update()


FUSED = [lambda ps: sgd(ps, fused=True), lambda ps: adamw(ps, fused=True)]


@pytest.mark.parametrize("base", [sgd, adamw, *FUSED], ids=["sgd", "adamw", "sgd-fused", "adamw-fused"])
def test_a_gradient_scaler_changes_nothing(base):
    plain, ours = mlp(), mlp()
    train_steps(plain, s2sam(plain, base, rho=0.5), 4)
    optimizer, scaler = s2sam(ours, base, rho=0.5), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(4):
        scaled_step(ours, optimizer, scaler, step)
        optimizer.zero_grad()
    assert same(plain.state_dict(), ours.state_dict())


@pytest.mark.parametrize("base", [sgd, adamw, *FUSED], ids=["sgd", "adamw", "sgd-fused", "adamw-fused"])
def test_a_step_that_a_scaler_skips_leaves_weights_and_perturbed_weights(base):
    model = mlp()
    optimizer, scaler = s2sam(model, base, rho=0.5), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(2):
        scaled_step(model, optimizer, scaler, step)
        optimizer.zero_grad()
    w, state = weights(model), copy.deepcopy(optimizer.state_dict())
    scaled_step(model, optimizer, scaler, 2, spoil=True)
    optimizer.zero_grad()
    u = weights(model)
    assert scaler.get_scale() < 2.0**10
    assert norm(shift(model, w)) == close(0.5)
    optimizer.eval()
    assert same(weights(model), w)
    assert same(optimizer.state_dict(), state)
    backward(model, 3)
    assert same(weights(model), u)


class Late(nn.Module):
    """Its second layer takes part when told, its third never does, and the fourth is frozen."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.late, self.never, self.frozen = (nn.Linear(6, 3) for _ in range(4))
        self.frozen.requires_grad_(False)
        self.ready = False

    def forward(self, x):
        return self.first(x) + self.frozen(x) + (self.late(x) if self.ready else 0)


@bases
def test_a_parameter_joins_the_perturbation_after_its_first_gradient(base):
    model = Late()
    optimizer = s2sam(model, base, rho=0.5)
    start, found = weights(model.late), []
    for step in range(6):
        model.ready = 2 <= step < 5
        w, late = weights(model), weights(model.late)
        backward(model, step)
        found.append(norm(shift(model.late, late)) > 0)
        assert norm(shift(model, w)) == close(0.5 if step else 0.0)
        optimizer.step()
        optimizer.zero_grad()
        assert (step < 2) == same(weights(model.late), start)
    assert found == [False, False, False, True, True, True]
    w = weights(model.late)
    backward(model, 6)
    assert same(weights(model.late), w)  # the last step gave it no gradient, so no direction


@bases
def test_parameters_that_are_frozen_or_unused_stay_put(base):
    model = Late()
    before = weights(model.never) + weights(model.frozen)
    optimizer = s2sam(model, base, rho=0.5)
    train_steps(model, optimizer, 3)
    backward(model)
    assert same(weights(model.never) + weights(model.frozen), before)


# -- closures, and never silently the base ----------------------------------------------------------------------------


@bases
def test_a_closure_is_called_once_and_equals_the_loop(base):
    looped, closed, calls = mlp(), mlp(), []
    train_steps(looped, s2sam(looped, base, rho=0.5), 4)
    optimizer = fs.S2SAM(base(closed.parameters()), rho=0.5)
    for step in range(4):

        def closure(step=step):
            optimizer.zero_grad()
            calls.append(backward(closed, step))
            return calls[-1]

        assert optimizer.step(closure) is calls[-1]
        assert len(calls) == step + 1
    assert same(looped.state_dict(), closed.state_dict())


@pytest.mark.parametrize("inside", [True, False])
def test_perturbed_equals_follow_with_the_step_inside_or_after(inside):
    followed, explicit = mlp(), mlp()
    train_steps(followed, s2sam(followed, rho=0.5), 4)
    optimizer = fs.S2SAM(sgd(explicit.parameters()), rho=0.5)
    for step in range(4):
        with optimizer.perturbed():
            backward(explicit, step)
            if inside:
                optimizer.step()
        if not inside:
            optimizer.step()
        optimizer.zero_grad()
    assert same(followed.state_dict(), explicit.state_dict())


@bases
def test_without_follow_it_warns_once_at_the_second_step(base):
    model = mlp()
    optimizer = fs.S2SAM(base(model.parameters()))
    train_steps(model, optimizer, 1)
    with pytest.warns(UserWarning, match=r"S2SAM.*follow") as caught:
        train_steps(model, optimizer, 1)
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    train_steps(model, optimizer, 3)


def test_without_follow_and_without_rho_nothing_is_amiss():
    model = mlp()
    train_steps(model, fs.S2SAM(sgd(model.parameters()), rho=0.0), 4)


# -- costs ------------------------------------------------------------------------------------------------------------


def test_one_parameter_sized_buffer_is_all_it_keeps():
    def kept(optimizer):
        tensors = (t for entry in optimizer.state.values() for t in entry.values())
        return sum(t.untyped_storage().nbytes() for t in tensors)

    plain, ours = mlp(), mlp()
    train_steps(plain, reference := sgd(plain.parameters()), 3)
    train_steps(ours, optimizer := s2sam(ours), 3)
    backward(ours)
    assert kept(optimizer) - kept(reference) == sum(p.nbytes for p in ours.parameters())


def test_the_buffer_is_made_once():
    model = mlp()
    optimizer, places = s2sam(model), set()
    for step in range(4):
        train_steps(model, optimizer, 1, start=step)
        places.add(tuple(optimizer.state[p]["perturbed"].data_ptr() for p in model.parameters()))
    assert len(places) == 1


class Waits(TorchDispatchMode):
    """Records what makes the host wait for a device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "equal", "is_nonzero", "nonzero"):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def test_neither_step_nor_swap_makes_the_host_wait():
    model = mlp()
    optimizer = s2sam(model)
    train_steps(model, optimizer, 2)
    backward(model)
    with Waits() as waits:
        optimizer.step()
        optimizer.zero_grad()
        model(batch()[0])
        torch.ones(1).item()
    assert optimizer.is_perturbed
    assert waits.found == ["aten._local_scalar_dense.default"]  # our own, which shows that one would be seen


# -- input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", [fs.S2SAM, fs.SAM])
@pytest.mark.parametrize("rho", [-0.1, math.nan, math.inf, "0.05"])
def test_a_rho_that_is_no_radius_is_refused(wrapper, rho):
    with pytest.raises(fs.InputError, match=r"\Arho .*\Z"):
        wrapper(sgd(mlp().parameters()), rho=rho)
    with pytest.raises(fs.InputError, match=r"\Arho .*\Z"):
        wrapper(sgd([{"params": mlp().parameters(), "rho": rho}]))
    with pytest.raises(fs.InputError, match=r"\Arho .*\Z"):
        wrapper(sgd([{"params": mlp().parameters(), "rho": 0.1}]), rho=rho)


@pytest.mark.parametrize("wrapper", [fs.S2SAM, fs.SAM])
@pytest.mark.parametrize("base", [torch.optim.SGD, fs.S2SAM(sgd(mlp().parameters())), None, [torch.zeros(1)]])
def test_a_base_that_is_no_plain_optimizer_instance_is_refused(wrapper, base):
    with pytest.raises(fs.InputError, match=r"\Abase .*instance.*\Z"):
        wrapper(base)


def test_an_unknown_direction_is_refused_with_the_nearest():
    with pytest.raises(fs.InputError, match=r"\A.*'prevous'.*previous.*\Z"):
        fs.S2SAM(sgd(mlp().parameters()), direction="prevous")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_coarse_weights_get_one_clear_warning(dtype):
    weight = nn.Parameter(torch.ones(4, dtype=dtype))
    optimizer = fs.S2SAM(torch.optim.SGD([weight], lr=0.1))

    def step():
        with optimizer.perturbed():
            weight.square().sum().backward()
        optimizer.step()

    with pytest.warns(UserWarning, match=r"float16.*float32") as caught:
        step()
    assert len(caught) == 1
    step()  # and a second warning would be an error


@pytest.mark.parametrize("kind", [fs.S2SAM, fs.SAM])
def test_the_options_can_be_read_and_those_that_kept_state_does_not_depend_on_changed(kind):
    given = {"adaptive": True, "eta": 0.5, "mask_perturbation": True, "compact": True, "in_place": True}
    optimizer = kind(sgd(mlp().parameters()), **given)
    default = kind(sgd(mlp().parameters()))
    assert [getattr(default, name) for name in given] == [False, 0.01, True, False, False]
    for name, value in given.items():
        assert getattr(copy.deepcopy(optimizer), name) == value
        if name in ("adaptive", "eta"):
            setattr(default, name, value)
            assert getattr(default, name) == value
        else:
            with pytest.raises(AttributeError):
                setattr(optimizer, name, value)


def test_scaling_by_the_weights_can_be_turned_on_between_steps():
    given, turned = (mlp(norm=False) for _ in range(2))
    one, other = s2sam(given, adaptive=True, rho=0.5), s2sam(turned, rho=0.5)
    other.adaptive = True
    for model, optimizer in ((given, one), (turned, other)):
        train_steps(model, optimizer, 3)
    assert same(weights(given), weights(turned))
