"""Laws that hold for every method, under every kind of sharpness and both families of optimizers.

The methods come from ``fs.METHODS``, so a new one is held to the laws on the day it is listed. What is said of methods
by name here is what they promise: which prune on the way, and which never move their masks.
"""

import dataclasses
import functools
import io
import itertools

import pytest
import torch
import torch.nn.functional as F

import flatsparse as fs
from flatsparse.sam.state_entry import PERTURBED
from flatsparse.sparse.scores import needs_dense_gradient
from tests.helpers import (
    adamw,
    assert_zero_outside,
    copied,
    image_batch,
    masked,
    same,
    sgd,
    state_of,
    take_step,
    tiny_net,
    train_on_images,
)

STEPS, SPARSITY = 14, 0.8
PARTS = ("model", "optimizer", "training")
IN_ROUNDS = {"lth", "lrr"}
ROUND = 4  # steps; with half of the weights pruned after each, four rounds reach the sparsity
PRUNE_ON_THE_WAY = {"gmp", "safe", *IN_ROUNDS}
PRUNE_ONCE = {"safe"}
DENSER_ON_THE_WAY = {"acdc", "mest-ems", "chex", "chase"}
BY_CHANNELS = {"chex"}  # told how many channels to remove; sparsity comes out
REFILLED_LATER = {"chase"}  # channels go half a period before the update that fills what they leave
RESTORE = {"chex"}  # what returns takes up its last value
SCORED_ON_DATA = {"snip", "grasp", "wanda"}
NEVER_MOVE = {"dense", "static", *SCORED_ON_DATA}
KEEP_LAYERS = {"set", "set-original", "set-itop", "rigl", "rigl-itop", "mest"}
START_AT_WILL = {
    "dense",
    "gmp",
    "acdc",
    "safe",
    "mest",
    "mest-ems",
    "chex",
    *IN_ROUNDS,
}  # dense or by magnitude: no seed of ours decides
OPTIONS = {
    "dsr": {"threshold": 0.1, "drop_fraction": 0.3},  # a threshold near the weights, for so short a run
    "chex": {"explore": "removable"},  # of the tiny net's two convolutions both
    **{method: {"drop_fraction": 0.5} for method in IN_ROUNDS},
}
BASES = {"sgd": sgd, "adamw": adamw}
SHARPNESS = {"none": lambda base, rho: base, "sam": fs.SAM, "s2sam": fs.S2SAM}

SLOW = pytest.mark.slow
methods = pytest.mark.parametrize("method", fs.METHODS)
bases = pytest.mark.parametrize("base", BASES)
sharpnesses = pytest.mark.parametrize("sharpness", SHARPNESS)


def make(method, base, sharpness, *, rho=0.1, net=0, seed=0):
    """A sparse model, its optimizer and its training, made from scratch."""
    model = tiny_net(net)
    optimizer = SHARPNESS[sharpness](BASES[base](model.parameters()), rho=rho)
    options = dict(OPTIONS.get(method, {}))
    if "every" in {field.name for field in dataclasses.fields(fs.METHODS[method])}:
        options["every"] = 3
    if method in SCORED_ON_DATA:
        options = {"batches": [image_batch(seed, size=40)], "loss_fn": F.cross_entropy}
    if method == "grasp":
        options["per_class"] = 4
    sparsity = None if method in BY_CHANNELS else 0.0 if method == "dense" else SPARSITY
    training = fs.sparsify(model, optimizer, method, sparsity=sparsity, steps=STEPS, seed=seed, **options)
    return model, optimizer, training


def train(model, optimizer, steps, start=0, after=lambda step: None, training=None):
    """Steps ``start + 1`` to ``steps`` with a look after each; a method in rounds goes on to its next when it is time."""
    for step in range(start + 1, steps + 1):
        if training is not None and training.rounds > 1 and training.round < (step - 1) // ROUND:
            training.next_round()
        train_on_images(model, optimizer, step, start=step - 1, after=after)


def saved(model, optimizer, training):
    """A checkpoint as a file's bytes."""
    file = io.BytesIO()
    states = (part.state_dict() for part in (model, optimizer, training))
    torch.save(dict(zip(PARTS, states, strict=True)), file)
    return file.getvalue()


def loaded(file):
    """A checkpoint read anew, since an optimizer takes over the tensors it is given."""
    return torch.load(io.BytesIO(file), weights_only=True)


def look_at(model, optimizer, training):
    return loaded(saved(model, optimizer, training))


def live(training):
    return sum(int(mask.sum()) for mask in training.masks.values())


@methods
@bases
@sharpnesses
def test_sparsity_is_exact_and_nothing_lives_outside_the_masks_after_every_step(method, base, sharpness):
    model, optimizer, training = make(method, base, sharpness)
    total = sum(mask.numel() for mask in training.masks.values())
    target = total - round((0.0 if method in {"dense", *BY_CHANNELS} else SPARSITY) * total)
    counts = {name: int(mask.sum()) for name, mask in training.masks.items()}

    def look(step):
        assert training.steps_taken == step
        assert_zero_outside(model, training, optimizer)
        assert training.sparsity == 1 - live(training) / total
        if method not in PRUNE_ON_THE_WAY | DENSER_ON_THE_WAY:
            assert live(training) == target
        assert live(training) >= target or method in BY_CHANNELS | REFILLED_LATER

    assert_zero_outside(model, training, optimizer)
    train(model, optimizer, STEPS, after=look, training=training)
    if method in BY_CHANNELS:
        assert training.channels == 0.5  # 7 of 14: what sparsity that is depends on which
    else:
        assert live(training) == target
    if method in KEEP_LAYERS:
        assert {name: int(mask.sum()) for name, mask in training.masks.items()} == counts
    assert all(p.isfinite().all() for p in model.parameters())
    assert all((weight[mask] != 0).any() for weight, mask in masked(model, training).values())


@methods
@bases
@sharpnesses
def test_what_grows_starts_from_zero_in_weight_state_and_direction(method, base, sharpness):
    model, optimizer, training = make(method, base, sharpness)
    before = copied(training.masks)
    checked = 0

    def look(step):
        nonlocal checked
        for name, (weight, mask) in masked(model, training).items():
            grown = mask & ~before[name]
            assert method in RESTORE or not weight[grown].any()
            for key, value in state_of(optimizer, weight).items():  # u is the weight itself: no direction yet
                assert torch.equal(value[grown], weight[grown] if key == PERTURBED else torch.zeros_like(value[grown]))
            checked += int(grown.sum())
        before.update(copied(training.masks))

    train(model, optimizer, STEPS, after=look, training=training)
    assert checked > 0 or method in NEVER_MOVE | PRUNE_ON_THE_WAY


@methods
@bases
@pytest.mark.parametrize("sharpness", ["sam", "s2sam"])
def test_without_a_radius_the_run_is_the_bases_run_bit_for_bit(method, base, sharpness):
    plain = make(method, base, "none")
    wrapped = make(method, base, sharpness, rho=0.0)
    for model, optimizer, training in (plain, wrapped):
        train(model, optimizer, STEPS, training=training)
    assert same(plain[0].state_dict(), wrapped[0].state_dict())
    assert same(plain[2].state_dict(), wrapped[2].state_dict())
    assert same(plain[1].state_dict()["state"], wrapped[1].state_dict()["state"])


@methods
@bases
@pytest.mark.parametrize("sharpness", ["sam", "s2sam"])
def test_with_a_radius_the_run_is_another(method, base, sharpness):
    plain, wrapped = make(method, base, "none"), make(method, base, sharpness)
    for model, optimizer, _ in (plain, wrapped):
        train(model, optimizer, 3)
    assert not same(plain[0].state_dict(), wrapped[0].state_dict())


def resumed(method, base, sharpness, file, start, order=PARTS):
    """The end of a run that is rebuilt from other weights and continued from a checkpoint."""
    model, optimizer, training = make(method, base, sharpness, net=1)
    parts = dict(zip(PARTS, (model, optimizer, training), strict=True))
    checkpoint = loaded(file)
    for name in order:
        parts[name].load_state_dict(checkpoint[name])
    train(model, optimizer, STEPS, start=start, training=training)
    return look_at(model, optimizer, training)


@functools.cache
def whole(method, base, sharpness):
    """The end of a run that nothing disturbs."""
    model, optimizer, training = make(method, base, sharpness)
    train(model, optimizer, STEPS, training=training)
    return look_at(model, optimizer, training)


@methods
@bases
@sharpnesses
@pytest.mark.parametrize("stop", [pytest.param(2, marks=SLOW), 3, pytest.param(7, marks=SLOW), 8])
def test_a_resumed_run_is_the_run_that_never_stopped(method, base, sharpness, stop):
    # Updates come at 3, 6 and 9: just before one, just after one, and between. Rounds begin at 5, 9 and 13.
    model, optimizer, training = make(method, base, sharpness)
    train(model, optimizer, stop, training=training)
    file = saved(model, optimizer, training)
    assert same(whole(method, base, sharpness), resumed(method, base, sharpness, file, stop))


@methods
@bases
@sharpnesses
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=SLOW)], ids=["the other way round", "all"])
def test_the_parts_of_a_checkpoint_load_in_any_order(method, base, sharpness, every):
    model, optimizer, training = make(method, base, sharpness)
    train(model, optimizer, 4, training=training)
    file = saved(model, optimizer, training)
    first, *others = itertools.permutations(PARTS)
    others = others if every else others[-1:]
    wanted = resumed(method, base, sharpness, file, 4, first)
    for order in others:
        assert same(wanted, resumed(method, base, sharpness, file, 4, order)), order


@methods
@bases
@sharpnesses
def test_two_runs_of_one_seed_are_identical_though_one_is_saved_on_the_way(method, base, sharpness):
    torch.rand(3)  # nothing hangs on the global generator
    model, optimizer, training = make(method, base, sharpness)
    for stop in (3, 8):
        train(model, optimizer, stop, start=training.steps_taken, training=training)
        saved(model, optimizer, training)
    train(model, optimizer, STEPS, start=training.steps_taken, training=training)
    assert same(whole(method, base, sharpness), look_at(model, optimizer, training))


@methods
@bases
@sharpnesses
def test_masks_move_when_an_update_is_due_and_at_no_other_step(method, base, sharpness):
    model, optimizer, training = make(method, base, sharpness)
    before, moved = copied(training.masks), []

    def look(step):
        if not same(before, training.masks):
            moved.append(step)
        before.update(copied(training.masks))

    train(model, optimizer, STEPS, after=look, training=training)
    due = [step for step in range(1, STEPS + 1) if training.due(step)]
    if method in IN_ROUNDS:
        due = [1 + ROUND * number for number in range(1, training.rounds)]
    assert set(moved) <= set(due)
    if method in NEVER_MOVE:
        assert moved == []
    else:
        assert len(moved) == 1 if method in PRUNE_ONCE else len(moved) >= 2


@methods
def test_masks_of_a_random_start_hang_on_the_seed(method):
    first, again, other = (copied(make(method, "sgd", "none", seed=seed)[2].masks) for seed in (0, 0, 1))
    assert same(first, again)
    assert same(first, other) == (method in START_AT_WILL)


@pytest.mark.parametrize("method", sorted(PRUNE_ON_THE_WAY))
def test_pruning_on_the_way_never_brings_a_weight_back(method):
    model, optimizer, training = make(method, "sgd", "none")
    before = copied(training.masks)

    def look(step):
        assert all((before[name] | ~mask).all() for name, mask in training.masks.items())
        before.update(copied(training.masks))

    assert live(training) == 646
    train(model, optimizer, STEPS, after=look, training=training)


@methods
def test_a_method_is_a_frozen_dataclass_that_plans_the_same_twice(method):
    kind = fs.METHODS[method]
    assert kind.__dataclass_params__.frozen
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind().every = 7
    sparsity = 0.0 if method == "dense" else SPARSITY
    one, other = (kind().plan(sparsity, 10_000) for _ in range(2))
    assert (one.sparsity, one.distribution, one.rules) == (other.sparsity, other.distribution, other.rules)
    assert all(rule.dense_gradient == needs_dense_gradient(rule.grow) for rule in one.rules if hasattr(rule, "grow"))


def test_rewiring_at_every_step_keeps_the_laws():
    model = tiny_net()
    optimizer = fs.S2SAM(sgd(model.parameters()), rho=0.1)
    training = fs.sparsify(model, optimizer, "set", sparsity=SPARSITY, steps=STEPS, every=1, until=1.0)
    moved = 0
    for step in range(1, STEPS + 1):
        before = copied(training.masks)
        take_step(model, optimizer, step)
        moved += not same(before, training.masks)
        assert_zero_outside(model, training, optimizer)
    assert moved == STEPS - 1  # none at the first
