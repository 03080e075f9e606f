"""Laws of every direction and rule of sharpness, under every method and both families of optimizers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import flatsparse as fs
from flatsparse.sam.directions import DIRECTIONS
from flatsparse.sam.stalesam import StaleSAM
from tests.helpers import assert_zero_outside, image_batch, same, saved, tiny_net, train_on_images
from tests.laws.test_methods import BASES, BY_CHANNELS, OPTIONS, SCORED_ON_DATA, SPARSITY
from tests.laws.test_torch_optimizers import states

STEPS, STOP = 10, 5
BUDGET = 0.02  # the radius is then now less than the largest allowed, now that
KINDS: dict[str, Any] = {
    **{name: (fs.S2SAM, {"direction": name}) for name in DIRECTIONS},
    "stale": (StaleSAM, {}),
    "budget": (fs.S2SAM, {"budget": BUDGET}),
    "budget of SAM": (fs.SAM, {"budget": BUDGET}),
}


def wrapped(kind: str, base: Any, rho: float) -> Any:
    wrapper, options = KINDS[kind]
    return wrapper(base, rho=rho, **options)


bases = pytest.mark.parametrize("base", BASES)
kinds = pytest.mark.parametrize("kind", KINDS)


def cells() -> Any:
    """Every method and kind; in the fast suite with one of the bases each, in turn."""
    found = []
    for row, method in enumerate(fs.METHODS):
        for column, kind in enumerate(KINDS):
            for place, base in enumerate(BASES):
                slow = (row + column + place) % len(BASES)
                found.append(pytest.param(method, base, kind, marks=pytest.mark.slow if slow else ()))
    return pytest.mark.parametrize(("method", "base", "kind"), found)


def make(method: str, base: str, kind: str, seed: int = 0, rho: float = 0.1) -> tuple[Any, ...]:
    model = tiny_net(seed)
    optimizer = wrapped(kind, BASES[base](model.parameters()), rho)
    options = dict(OPTIONS.get(method, {}))
    if hasattr(fs.METHODS[method], "every"):
        options["every"] = 3
    if method in SCORED_ON_DATA:
        options |= {"batches": [image_batch(0, size=40)], "loss_fn": F.cross_entropy}
    if method == "grasp":
        options["per_class"] = 4
    sparsity = None if method in BY_CHANNELS else 0.0 if method == "dense" else SPARSITY
    return model, optimizer, fs.sparsify(model, optimizer, method, sparsity=sparsity, steps=STEPS, **options)


@cells()
def test_nothing_lives_outside_the_masks_and_a_resumed_run_is_the_one_that_never_stopped(method, base, kind):
    model, optimizer, training = parts = make(method, base, kind)
    train_on_images(model, optimizer, STOP, after=lambda step: assert_zero_outside(model, training, optimizer))
    files = saved(states(*parts))
    train_on_images(
        model, optimizer, STEPS, start=STOP, after=lambda step: assert_zero_outside(model, training, optimizer)
    )
    assert all(p.isfinite().all() for p in model.parameters())
    resumed = make(method, base, kind, seed=1)
    for part, file in zip(resumed, files, strict=True):
        part.load_state_dict(file)
    train_on_images(*resumed[:2], STEPS, start=STOP)
    assert same(states(*parts), states(*resumed))


@bases
@kinds
def test_without_a_radius_it_is_the_base_and_with_one_it_is_not(base, kind):
    found = []
    for rho in (None, 0.0, 0.1):
        model = tiny_net()
        plain = BASES[base](model.parameters())
        optimizer = plain if rho is None else wrapped(kind, plain, rho)
        fs.sparsify(model, optimizer, "rigl", sparsity=SPARSITY, steps=STEPS, every=3)
        train_on_images(model, optimizer, STEPS)
        found.append([p.detach().clone() for p in model.parameters()])
    assert all(map(torch.equal, found[0], found[1]))
    assert not all(map(torch.equal, found[0], found[2]))
