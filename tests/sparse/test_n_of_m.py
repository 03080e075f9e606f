"""N:M masks: the way from dense to sparse against a plain loop over groups, and every method that takes them."""

import itertools
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import flatsparse as fs
from flatsparse.common.weight_layout import inputs_first, outputs_first
from flatsparse.sam.directions import DIRECTIONS
from flatsparse.sam.looksam import LookSAM
from flatsparse.sam.stalesam import StaleSAM
from flatsparse.sparse.distributions import uniform
from flatsparse.sparse.masked_weight import MaskedWeight
from flatsparse.sparse.n_of_m import GradualNofM, NofM
from flatsparse.sparse.pattern import Pattern
from tests.helpers import assert_zero_outside, copied, image_batch, same, saved, seen, sgd, state_of, take_step

STEPS = 12
PATTERNS = {"2:4": 0.5, "1:4": 0.75, "4:8": 0.5, "block:4x1": 0.6}
METHODS = ["static", "set", "rigl", "gmp"]
SHARPNESS = {
    "none": lambda base: base,
    "sam": lambda base: fs.SAM(base, rho=0.1),
    "looksam": lambda base: LookSAM(base, rho=0.1, every=2),
    "stale": lambda base: StaleSAM(base, rho=0.1),
    **{name: partial(fs.S2SAM, rho=0.1, direction=name) for name in DIRECTIONS},
}


# -- against a plain form ---------------------------------------------------------------------------------------------


def plain_groups(shape, of):
    """The flat places of each group of a weight (outputs, inputs, …), in the order of their first places."""
    outputs, inputs, *kernel = shape
    places = torch.arange(math.prod(shape)).view(shape)
    corners = itertools.product(range(outputs), range(0, inputs, of), *(range(k) for k in kernel))
    return [[int(places[(o, c + j, *at)]) for j in range(of)] for o, c, *at in corners]


def plain_best(scores, groups, count):
    """A mask of each group's largest scores, and of one more in the groups whose next one is the largest."""
    flat = [-math.inf if math.isnan(s) else s for s in scores.flatten().tolist()]
    every, more = divmod(count, len(groups))
    ranked = [sorted(group, key=lambda i: (-flat[i], i)) for group in groups]
    kept = [i for group in ranked for i in group[:every]]
    following = sorted((g for g in range(len(groups)) if more), key=lambda g: (-flat[ranked[g][every]], g))
    kept += [ranked[g][every] for g in following[:more]]
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[kept] = True
    return mask.view(scores.shape)


@st.composite
def cases(draw):
    """A pattern, the shape (outputs, inputs, …) of a layer that it divides, how the layer is stored, and random scores."""
    groups = draw(st.sampled_from([0, 1, 2]))
    of = draw(st.integers(1, 5))
    pattern = GradualNofM(NofM(draw(st.integers(1, of)), of))
    shape = (2 * draw(st.integers(1, 3)), of * draw(st.integers(1, 3)), *draw(st.sampled_from([(), (2,), (3, 2)])))
    source = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    scores = torch.randint(5, shape, generator=source).float()  # many tie
    return pattern, scores.masked_fill(scores == 4, torch.nan), groups


@settings(deadline=None, max_examples=80)
@given(cases(), st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_masks_on_the_way_are_those_of_the_plain_form_and_nothing_comes_back(case, densities):
    pattern, scores, groups = case
    listed, size = plain_groups(scores.shape, pattern.end.of), scores.numel()
    least = len(listed) * pattern.end.active
    before = torch.ones_like(scores, dtype=torch.bool)
    for density in [*sorted(densities, reverse=True), 0]:
        count = least + round(density * (size - least))
        among = scores.nan_to_num(-1).masked_fill(~before, -torch.inf)  # as rules have them
        mask = pattern.best(pattern.ranked(outputs_first(among, groups), "w", groups), count, groups)
        turned = outputs_first(mask, groups)
        assert torch.equal(turned, plain_best(among, listed, count))
        assert not (turned & ~before).any()
        assert pattern.holds(mask, inputs_first=groups)
        before = turned
        with_nan = pattern.best(outputs_first(scores, groups), count, groups)
        assert torch.equal(outputs_first(with_nan, groups), plain_best(scores, listed, count))
    assert pattern.end.holds(mask, inputs_first=groups)


@settings(deadline=None, max_examples=60)
@given(cases(), st.floats(0, 1), st.floats(0, 1))
def test_weights_that_move_leave_the_groups_even(case, density, fraction):
    pattern, scores, groups = case
    least = scores.numel() // pattern.end.of * pattern.end.active
    stored = outputs_first(scores, groups)
    w = MaskedWeight("w", nn.Parameter(stored), 0, inputs_first=groups)
    w.set_mask(pattern.best(stored, least + round(density * (scores.numel() - least)), groups))
    drop = lambda w: torch.rand(w.mask.shape, generator=torch.Generator().manual_seed(0))  # noqa: E731
    new = pattern.moved(w, fraction, drop, drop)
    assert int(new.sum()) == w.active
    assert pattern.holds(new, inputs_first=groups)
    assert int((w.mask & ~new).sum()) <= int(fraction * w.active)


@settings(deadline=None, max_examples=40)
@given(cases(), st.data())
def test_a_mask_holds_when_groups_have_enough_and_differ_by_one(case, data):
    pattern, scores, groups = case
    mask = torch.ones(scores.shape, dtype=torch.bool)
    mask.view(-1)[list(data.draw(st.sets(st.integers(0, scores.numel() - 1))))] = False
    counts = [sum(mask.flatten()[group].tolist()) for group in plain_groups(scores.shape, pattern.end.of)]
    wanted = min(counts) >= pattern.end.active and max(counts) - min(counts) <= 1
    assert pattern.holds(outputs_first(mask, groups), inputs_first=groups) == wanted


def test_every_layer_is_as_sparse_as_the_others_down_to_the_pattern():
    pattern, scores = GradualNofM(NofM(1, 4)), {"a": torch.zeros(8, 4), "b": torch.zeros(4, 24)}
    assert pattern.counts(scores, 100, uniform) == {"a": 25, "b": 75}
    assert pattern.counts(scores, 3, uniform) == {"a": 8, "b": 24}
    assert pattern.counts(scores, 100, uniform, most={"a": 20, "b": 96}) == {"a": 20, "b": 80}
    assert isinstance(pattern, Pattern)
    assert str(pattern) == "1:4"
    with pytest.raises(fs.InputError, match="'c' has 6 inputs, which pattern 1:4 does not divide"):
        pattern.ranked(torch.zeros(2, 6), "c")


# -- methods ----------------------------------------------------------------------------------------------------------


def net(seed=0):
    """A convolution and a linear layer that each of the patterns divides, behind one that none does."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 8),
        )


def make(method, pattern, sharpness="none", weights=0):
    model = net(weights)
    optimizer = SHARPNESS[sharpness](sgd(model.parameters()))
    options = {} if method == "static" else {"every": 3}
    training = fs.sparsify(
        model, optimizer, method, sparsity=PATTERNS[pattern], steps=STEPS, pattern=pattern, exclude=["0"], **options
    )
    return model, optimizer, training


def groups_of(mask, pattern):
    """The entries of each group, or block, in a row."""
    kind, _, size = pattern.rpartition(":")
    if kind == "block":
        return mask.unflatten(0, (-1, 4)).movedim(1, -1).flatten(0, -2)
    return mask.unflatten(1, (-1, int(size))).movedim(2, -1).flatten(0, -2)


def assert_keeps(masks, pattern):
    for name, mask in masks.items():
        counts = groups_of(mask, pattern).sum(1).unique().tolist()
        assert counts == ([0, 4] if pattern.startswith("block") else [int(pattern.partition(":")[0])]), name


def some(number):
    """Each method with one of the patterns, over four numbers with all of them."""
    return [(method, [*PATTERNS][(i + number) % 4]) for i, method in enumerate(METHODS)]


@pytest.mark.parametrize(
    ("sharpness", "chosen"),
    [
        *((sharpness, some(number)) for sharpness in ("none", "sam", "previous") for number in range(4)),
        *((sharpness, some(number)) for number, sharpness in enumerate(SHARPNESS) if number > 1),
    ],
)
def test_what_is_trained_keeps_the_pattern_and_loads_into_a_dense_model(sharpness, chosen):
    for method, pattern in chosen:
        model, optimizer, training = make(method, pattern, sharpness)
        start = copied(training.masks)
        for step in range(1, STEPS + 1):
            take_step(model, optimizer, step)
        assert same(copied(training.masks), start) == (method == "static"), method
        assert_keeps(training.masks, pattern)
        assert_zero_outside(model, training, optimizer)
        assert all(state_of(optimizer, model.get_parameter(name)) for name in training.masks)
        dense = net(1)
        assert list(model.state_dict()) == list(dense.state_dict())
        dense.load_state_dict(model.state_dict())
        x = image_batch(0)[0]
        assert torch.equal(dense.eval()(x), model.eval()(x))


@pytest.mark.parametrize("pattern", ["2:4", "1:4"])
def test_gmp_prunes_every_group_alike_along_the_cubic_schedule(pattern):
    model, optimizer, training = make("gmp", pattern)
    before, seen_between = copied(training.masks), set()
    for step in range(1, STEPS + 1):
        take_step(model, optimizer, step)
        for name, mask in training.masks.items():
            assert not (mask & ~before[name]).any()
            counts = groups_of(mask, pattern).sum(1)
            assert int(counts.max() - counts.min()) <= 1
            reached = 1 - PATTERNS[pattern] * (1 - (1 - min(1, step // 3 * 3 / 9)) ** 3)
            assert abs(int(mask.sum()) - reached * mask.numel()) <= 1
            seen_between |= set(counts.tolist())
        before = copied(training.masks)
    assert_keeps(training.masks, pattern)
    assert {4, int(pattern[0])} <= seen_between


@pytest.mark.parametrize("stop", [4, 10])
def test_gradual_training_that_is_resumed_is_the_one_that_never_stopped(stop):
    run = make("gmp", "2:4", "previous")
    for step in range(1, STEPS + 1):
        take_step(*run[:2], step)
        if step == stop:
            state = seen(*run)
    for order in itertools.permutations(range(3)):
        again = make("gmp", "2:4", "previous", weights=1)
        whole = saved(state)  # what is loaded may be kept and written to
        for part in order:
            again[part].load_state_dict(whole[part])
        for step in range(stop + 1, STEPS + 1):
            take_step(*again[:2], step)
        assert same(copied(again[2].masks), copied(run[2].masks)), order
        assert same(copied(again[0].state_dict()), copied(run[0].state_dict())), order


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(8, 6),
        nn.Conv2d(8, 6, 2, groups=2),
        nn.ConvTranspose2d(8, 6, 2),
        nn.ConvTranspose2d(8, 6, 2, groups=2),
    ],
    ids=repr,
)
def test_gmp_prunes_along_the_inputs_whichever_way_a_layer_stores_them(layer):
    optimizer = sgd(layer.parameters())
    training = fs.sparsify(layer, optimizer, "gmp", sparsity=0.75, steps=8, every=2, pattern=(1, 4))
    for _ in range(8):
        optimizer.zero_grad()
        layer(torch.randn(4, 8, *[5] * (layer.weight.ndim - 2))).square().mean().backward()
        optimizer.step()
        mask = outputs_first(training.masks["weight"], inputs_first(layer))
        counts = groups_of(mask, "1:4").sum(1)
        assert int(counts.max() - counts.min()) <= 1
    assert_keeps({"weight": mask}, "1:4")
