"""Masks of whole blocks: against plain forms that list the blocks, and the laws of the methods that take them."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import flatsparse as fs
from flatsparse.common.weight_layout import inputs_first, outputs_first
from flatsparse.measure.estimate import estimate
from flatsparse.sparse.distributions import DISTRIBUTIONS
from flatsparse.sparse.masks import MaskedWeight
from flatsparse.sparse.n_of_m import NofM
from flatsparse.sparse.pattern import UNSTRUCTURED, Pattern, Unstructured, pattern_of
from tests.helpers import adamw, assert_zero_outside, copied, image_batch, same, seen, sgd, take_step, tiny_net

STEPS, SPARSITY = 14, 0.7
METHODS = ["static", "set", "rigl", "gmp"]
OPTIMIZERS = {
    "sgd": sgd,
    "adamw": adamw,
    "s2sam": lambda parameters: fs.S2SAM(sgd(parameters), rho=0.1),
    "s2sam adamw": lambda parameters: fs.S2SAM(adamw(parameters), rho=0.1),
}


# -- against a plain form ---------------------------------------------------------------------------------------------


def plain_blocks(shape, block):
    """The flat places of each block in a weight (outputs, inputs, …), in the order of their first places."""
    outputs, inputs, *kernel = shape
    corners = itertools.product(
        range(0, outputs, block.outputs), range(0, inputs, block.inputs), *(range(k) for k in kernel)
    )
    places = torch.arange(math.prod(shape)).view(shape)
    return [
        [int(places[(o + i, c + j, *at)]) for i in range(block.outputs) for j in range(block.inputs)]
        for o, c, *at in corners
    ]


def plain_best(scores, blocks, among, count):
    """The numbers of the blocks, of those among which to choose, whose scores have the largest sums."""
    flat = scores.flatten().tolist()
    return sorted(among, key=lambda b: (-sum(flat[i] for i in blocks[b]), b))[:count]


def plain_mask(shape, blocks, chosen):
    mask = torch.zeros(math.prod(shape), dtype=torch.bool)
    for b in chosen:
        mask[blocks[b]] = True
    return mask.view(shape)


@st.composite
def cases(draw):
    """A block, the shape (outputs, inputs, …) of a layer that it divides, how the layer is stored, and a seed."""
    groups = draw(st.sampled_from([0, 1, 2]))
    block = fs.Block(draw(st.integers(1, 4)), draw(st.integers(1, 3)))
    outputs = block.outputs * 2 * draw(st.integers(1, 3))
    inputs = block.inputs * draw(st.integers(1, 4))
    return block, (outputs, inputs, *draw(st.sampled_from([(), (2,), (3, 2)]))), groups, draw(st.integers(0, 99))


@settings(deadline=None, max_examples=60)
@given(cases(), st.floats(0, 1), st.floats(0, 1))
def test_best_and_moved_blocks_are_those_of_the_plain_form(case, density, fraction):
    block, shape, groups, seed = case
    source = torch.Generator().manual_seed(seed)
    first, drop, grow = (torch.randint(4, shape, generator=source).float() for _ in range(3))  # sums tie, and are exact
    blocks = plain_blocks(shape, block)
    count = round(density * len(blocks))
    stored = lambda t: outputs_first(t, groups)  # noqa: E731

    active = plain_best(first, blocks, range(len(blocks)), count)
    mask = block.best(block.ranked(stored(first), inputs_first=groups), count * block.size, groups)
    assert torch.equal(mask, stored(plain_mask(shape, blocks, active)))
    assert block.holds(mask, inputs_first=groups)

    w = MaskedWeight("w", nn.Parameter(stored(first)), 0, inputs_first=groups)
    w.set_mask(mask)
    moved = int(fraction * count)
    kept = plain_best(drop, blocks, active, count - moved)
    grown = plain_best(grow, blocks, [b for b in range(len(blocks)) if b not in kept], moved)
    new = block.moved(w, fraction, lambda w: stored(drop), lambda w: stored(grow))
    assert torch.equal(new, stored(plain_mask(shape, blocks, kept + grown)))
    assert int(new.sum()) == w.active


@settings(deadline=None, max_examples=30)
@given(cases(), st.data())
def test_a_mask_holds_when_every_block_is_whole(case, data):
    block, shape, groups, _ = case
    blocks = plain_blocks(shape, block)
    mask = plain_mask(shape, blocks, data.draw(st.sets(st.integers(0, len(blocks) - 1))))
    assert block.holds(outputs_first(mask, groups), inputs_first=groups)
    mask.view(-1)[data.draw(st.integers(0, mask.numel() - 1))] ^= True
    assert block.holds(outputs_first(mask, groups), inputs_first=groups) == (block.size == 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_sums_of_scores_are_not_rounded_to_half_precision(dtype):
    scores = torch.ones(512, 2, dtype=dtype)
    scores[0, 1] = 2  # of 512 and 513; half precisions have 8 and 11 bits
    assert fs.Block(512, 1).best(fs.Block(512, 1).ranked(scores), 512).any(0).tolist() == [False, True]


# -- counts -----------------------------------------------------------------------------------------------------------


def net(seed=0):
    """Two convolutions and a linear layer on 8x8 images; a block of 4 outputs divides them all."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(64, 12),
        )


def wanted(training, size, sparsity=SPARSITY):
    total = sum(mask.numel() for mask in training.masks.values())
    return size * round((total - round(sparsity * total)) / size)


@pytest.mark.parametrize("name", ["uniform", "er", "erk"])
@pytest.mark.parametrize("sparsity", [0.5, 0.83])
def test_layers_have_what_their_distribution_gives_to_a_block(name, sparsity):
    block, counts = fs.Block(4, 1), []
    for pattern in (None, block):
        model = net()
        optimizer = sgd(model.parameters())
        training = fs.sparsify(
            model, optimizer, "static", sparsity=sparsity, steps=1, pattern=pattern, distribution=name
        )
        counts.append([int(mask.sum()) for mask in training.masks.values()])
    assert sum(counts[1]) == wanted(training, block.size, sparsity)
    assert all(abs(a - b) <= block.size for a, b in zip(*counts, strict=True))
    assert all(b % block.size == 0 for b in counts[1])


def test_global_counts_are_those_of_the_largest_blocks_of_the_net():
    block, source = fs.Block(2, 3), torch.Generator().manual_seed(0)
    shapes = {"a": (4, 6, 2), "b": (10, 3), "c": (6, 9)}
    scores = {name: torch.rand(shape, generator=source, dtype=torch.float64) for name, shape in shapes.items()}
    sums = [
        (float(s.flatten()[places].sum()), name)
        for name, s in scores.items()
        for places in plain_blocks(s.shape, block)
    ]
    best = [name for _, name in sorted(sums, reverse=True)[:9]]
    ranked = {name: block.ranked(s) for name, s in scores.items()}
    counts = block.counts(ranked, 9 * block.size + 2, DISTRIBUTIONS["global"])
    assert counts == {name: block.size * best.count(name) for name in shapes}


# -- laws of the methods ----------------------------------------------------------------------------------------------


class Half(Unstructured):
    """A pattern of a user's own that is always half sparse."""

    sparsity = 0.5

    def __str__(self):
        return "half"


def make(method, optimizer, block, weights=0):
    model = net(weights)
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    options = {} if method == "static" else {"every": 3}
    exclude = ["0"] if block.inputs > 1 else []
    training = fs.sparsify(
        model, optimizer, method, sparsity=SPARSITY, steps=STEPS, pattern=block, exclude=exclude, **options
    )
    return model, optimizer, training


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("block", [fs.Block(4, 1), fs.Block(2, 4)], ids=str)
def test_every_mask_is_of_whole_blocks_at_every_moment(method, optimizer, block):
    model, optimizer, training = make(method, optimizer, block)
    target = wanted(training, block.size)
    counts = {name: int(mask.sum()) for name, mask in training.masks.items()}
    before, moved = copied(training.masks), 0
    for step in range(1, STEPS + 1):
        take_step(model, optimizer, step)
        for name, mask in training.masks.items():
            whole = mask.flatten()[torch.tensor(plain_blocks(mask.shape, block))]
            assert torch.equal(whole.all(1), whole.any(1)), name
            if method == "gmp":
                assert not (mask & ~before[name]).any()
            else:
                assert int(mask.sum()) == counts[name]
        assert_zero_outside(model, training, optimizer)
        assert sum(map(int, (mask.sum() for mask in training.masks.values()))) >= target
        moved += not same(before, training.masks)
        assert not moved or training.due(step) or same(before, training.masks)
        before = copied(training.masks)
    assert sum(int(mask.sum()) for mask in training.masks.values()) == target
    assert (moved > 0) == (method != "static")
    assert all(mask.any() for mask in training.masks.values())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resumed_run_is_the_run_that_never_stopped(method, optimizer):
    block, stop = fs.Block(4, 1), 7
    run = make(method, optimizer, block)
    for step in range(1, STEPS + 1):
        take_step(*run[:2], step)
        if step == stop:
            state = seen(*run)
    again = make(method, optimizer, block, weights=1)
    for part, values in zip(again, state, strict=True):
        part.load_state_dict(values)
    for step in range(stop + 1, STEPS + 1):
        take_step(*again[:2], step)
    assert same(copied(again[2].masks), copied(run[2].masks))
    assert same(copied(again[0].state_dict()), copied(run[0].state_dict()))


@pytest.mark.parametrize("method", ["static", "rigl"])
@pytest.mark.parametrize(
    "layer",
    [nn.Linear(6, 8), nn.Conv2d(6, 8, 3, groups=2), nn.ConvTranspose2d(6, 8, 3), nn.ConvTranspose2d(6, 8, 3, groups=2)],
    ids=repr,
)
def test_blocks_lie_along_the_outputs_whichever_way_a_layer_stores_them(layer, method):
    options = {"every": 2} if method == "rigl" else {}
    training = fs.sparsify(
        layer, sgd(layer.parameters()), method, sparsity=0.5, steps=10, pattern="block:4x1", **options
    )
    turned = outputs_first(training.masks["weight"], inputs_first(layer)).unflatten(0, (-1, 4))
    assert torch.equal(turned.all(1), turned.any(1))
    assert training.sparsity == 0.5


# -- masks that are given, estimates, errors --------------------------------------------------------------------------


def test_given_masks_are_checked_to_be_of_whole_blocks():
    masks = copied(make("set", "sgd", fs.Block(4, 1))[2].masks)

    def start():
        model = net(1)
        choice = {"masks": masks, "steps": STEPS, "every": 3, "pattern": fs.Block(4, 1)}
        return fs.sparsify(model, sgd(model.parameters()), "rigl", **choice)

    assert same(copied(start().masks), masks)
    masks["7.weight"][0, 0] ^= True
    with pytest.raises(fs.InputError, match=r"the mask of '7\.weight' does not keep to block:4x1: leave out pattern="):
        start()


@pytest.mark.parametrize("method", METHODS)
def test_an_estimate_has_the_sparsity_of_the_training(method):
    choice = {"sparsity": SPARSITY, "steps": STEPS, "pattern": fs.Block(4, 1)}
    choice |= {} if method == "static" else {"every": 3}
    found = estimate(net(), image_batch(0)[0], method, **choice)
    assert found.sparsity == pytest.approx(1 - wanted(make("static", "sgd", fs.Block(4, 1))[2], 4) / (72 + 1152 + 768))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "layer '7.weight' has 5 outputs, which pattern block:2x1 does not divide: leave it out with exclude="),
        ({"method": "gmp"}, "layer '7.weight' has 5 outputs"),
        (
            {"pattern": fs.Block(1, 4)},
            "layer '0.weight' has 1 inputs, which pattern block:1x4 does not divide: leave it out with exclude=",
        ),
        (
            {"method": "gmp", "pattern": (2, 4), "sparsity": 0.5},
            "layer '0.weight' has 1 inputs, which pattern 2:4",
        ),
        ({"method": "gmp", "pattern": (2, 4)}, "pattern 2:4 is 0.5 sparse, not 0.75: give sparsity=0.5"),
        (
            {"method": "gmp", "pattern": Half(), "sparsity": 0.5},
            "'gmp' starts dense, and pattern half is always 0.5",
        ),
        ({"pattern": "block:2"}, "pattern 'block:2' is not usable: give (2, 4) or '2:4'"),
        ({"pattern": fs.Block}, "is not usable"),
        ({"pattern": "2:4"}, "pattern 2:4 is 0.5 sparse, not 0.75: give sparsity=0.5"),
        ({"pattern": "block:0x1"}, "the outputs of a block 0 is not usable"),
        (
            {"sparsity": 0.993, "exclude": ["7"]},
            "leaves 3 active weights for 2 layers: give at most 0.99177, so that every layer keeps 2",
        ),
        ({"method": "mest"}, "method 'mest' has no option 'pattern'"),
    ],
)
def test_what_cannot_be_is_one_line(options, says):
    model = tiny_net()
    before = copied(model.state_dict())
    choice = {"method": "rigl", "sparsity": 0.75, "steps": 400, "pattern": fs.Block(2, 1), **options}
    with pytest.raises(fs.InputError) as caught:
        fs.sparsify(model, sgd(model.parameters()), **choice)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert same(before, copied(model.state_dict()))


@pytest.mark.parametrize("inputs", [0, -1, 1.5, "3"])
def test_a_block_has_a_size(inputs):
    with pytest.raises(fs.InputError, match="the inputs of a block"):
        fs.Block(4, inputs)


def test_patterns_have_their_names_and_one_protocol():
    named = {"2:4": NofM(2, 4), "block:16x1": fs.Block(), "block:4x2": fs.Block(4, 2)}
    for name, pattern in named.items():
        assert str(pattern) == name
        assert pattern_of(name, 0.5) == pattern_of(pattern, 0.5) == pattern
    assert pattern_of(None, 0.5) is UNSTRUCTURED
    assert all(isinstance(pattern, Pattern) for pattern in (*named.values(), UNSTRUCTURED))
