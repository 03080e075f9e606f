"""S2SAM with parameter groups, and with the schedulers that change them."""

from __future__ import annotations

import math

import pytest
import torch
from torch.optim import lr_scheduler

import flatsparse as fs
from flatsparse.schedules import InverseSqrt
from tests.helpers import (
    backward,
    bases,
    close,
    gradients,
    mlp,
    norm,
    s2sam,
    sgd,
    train_steps,
    values,
)

pytestmark = pytest.mark.filterwarnings("error")


def perturbation_by_group(model, optimizer, step=0):
    groups = [g["params"] for g in optimizer.param_groups]
    before = [values(ps) for ps in groups]
    backward(model, step)
    after = [values(ps) for ps in groups]
    return [norm(u - w for u, w in zip(us, ws, strict=True)) for us, ws in zip(after, before, strict=True)]


@bases
def test_each_group_is_perturbed_by_its_own_rho(base):
    model = mlp()
    groups = [
        {"params": model[0].parameters(), "rho": 0.0},
        {"params": model[1].parameters(), "rho": 0.2},
        {"params": model[3].parameters()},
    ]
    optimizer = fs.S2SAM(base(groups), rho=0.4).follow(model)
    backward(model)
    live = [norm(gradients(model[k])) for k in (1, 3)]
    optimizer.step()
    optimizer.zero_grad()
    expected = [close(rho * part / math.hypot(*live)) for rho, part in zip((0.2, 0.4), live, strict=True)]
    assert perturbation_by_group(model, optimizer, 1) == [0.0, *expected]


def test_a_group_added_later_has_the_default_or_its_own_rho():
    model = mlp()
    optimizer = fs.S2SAM(sgd(model[0].parameters()), rho=0.4).follow(model)
    train_steps(model, optimizer, 2)
    optimizer.add_param_group({"params": list(model[1].parameters()), "rho": 0.0})
    optimizer.add_param_group({"params": list(model[3].parameters())})
    assert [g["rho"] for g in optimizer.base.param_groups] == [0.4, 0.0, 0.4]
    train_steps(model, optimizer, 1, start=2)
    first, second, third = perturbation_by_group(model, optimizer, 3)
    assert math.hypot(first, third) == close(0.4)
    assert second == 0
    assert third > 0


def test_a_group_added_to_the_base_works_as_well():
    model = mlp()
    optimizer = fs.S2SAM(sgd(model[0].parameters()), rho=0.4).follow(model)
    optimizer.base.add_param_group({"params": list(model[3].parameters())})
    train_steps(model, optimizer, 2)
    assert math.hypot(*perturbation_by_group(model, optimizer, 2)) == close(0.4)


def test_a_group_with_a_bad_rho_is_refused():
    model = mlp()
    optimizer = fs.S2SAM(sgd(model[0].parameters()))
    with pytest.raises(fs.InputError, match="rho"):
        optimizer.add_param_group({"params": list(model[3].parameters()), "rho": -0.1})
    assert len(optimizer.param_groups) == 1


def test_a_change_of_rho_counts_from_the_next_perturbation():
    model = mlp(norm=False)
    optimizer, found = s2sam(model, rho=0.5), []
    for step, rho in enumerate([0.5, 0.2, 0.8, 0.0, 0.5, 0.5]):
        optimizer.param_groups[0]["rho"] = rho
        found += perturbation_by_group(model, optimizer, step)
        optimizer.step()
        optimizer.zero_grad()
    assert found == [0.0, close(0.2), close(0.8), 0.0, 0.0, close(0.5)]


def test_a_change_of_rho_between_backward_and_step_counts_too():
    model = mlp(norm=False)
    optimizer, found = s2sam(model, rho=0.5), []
    for step, rho in enumerate([0.5, 0.2, 0.8]):
        found += perturbation_by_group(model, optimizer, step)
        optimizer.param_groups[0]["rho"] = rho
        optimizer.step()
        optimizer.zero_grad()
    assert [*found, *perturbation_by_group(model, optimizer)] == [0.0, close(0.5), close(0.2), close(0.8)]


def test_rho_may_warm_up_from_zero():
    model = mlp(norm=False)
    optimizer, found = s2sam(model, rho=0.0), []
    for step in range(4):
        optimizer.param_groups[0]["rho"] = 0.1 * step
        found += perturbation_by_group(model, optimizer, step)
        optimizer.step()
        optimizer.zero_grad()
    assert found == [0.0, 0.0, close(0.2), close(0.3)]


@pytest.mark.parametrize("kind", [fs.S2SAM, fs.SAM])
def test_a_schedule_leaves_the_rho_of_adadelta_alone(kind):
    model = mlp()
    optimizer = kind(torch.optim.Adadelta(model.parameters(), rho=0.75), rho=InverseSqrt(0.5))
    for step in range(3):
        optimizer.step(lambda step=step: (optimizer.zero_grad(), backward(model, step))[1])
    group = optimizer.param_groups[0]
    assert (group["rho"], group["sam_rho"]) == (0.75, InverseSqrt(0.5)(4))
    optimizer.reset_state()
    assert (group["rho"], group["sam_rho"]) == (0.75, 0.5)


SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 4]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, total_iters=3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, total_iters=4),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 6),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 6),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=8),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.2, step_size_up=2),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1), lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
}


def test_no_scheduler_of_torch_is_left_out():
    assert set(SCHEDULERS) == set(lr_scheduler.__all__) - {"LRScheduler"}


@bases
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_drive_the_base_through_the_wrapper(base, name):
    def course(optimizer, model, base):
        scheduler, seen = SCHEDULERS[name](optimizer), []
        for step in range(6):
            train_steps(model, optimizer, 1, start=step)
            scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
            seen += [(g["lr"], g.get("momentum"), g.get("betas")) for g in base.param_groups]
        return seen

    plain, ours = mlp(), mlp()
    reference, optimizer = base(plain.parameters()), s2sam(ours, base)
    expected = course(reference, plain, reference)
    assert course(optimizer, ours, optimizer.base) == expected
    assert len({lr for lr, *_ in expected}) > 1
