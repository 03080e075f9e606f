"""Rules by themselves, against plain forms: DropAndGrow moves active weights, PruneTo takes them away."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import flatsparse as fs
from flatsparse.schedules import Constant, Cubic, Every
from flatsparse.sparse import scores
from flatsparse.sparse.distributions import DISTRIBUTIONS, uniform
from flatsparse.sparse.masks import Masks
from flatsparse.sparse.plan import updates
from flatsparse.sparse.redistribution import mean_momentum
from flatsparse.sparse.rules import DropAndGrow, GrowTo, PruneTo
from flatsparse.sparse.state import TrainingState
from tests.helpers import copied, rewired_plainly, tiny_net

ALWAYS = Every(1, until=10**6)
ODD = [float("nan"), float("inf"), -float("inf")]
GROWTH = pytest.mark.parametrize("grow", [scores.random, scores.gradient])


def half_live(seed=0):
    """The tiny net's masks, half of each layer live at random, with a dense gradient kept."""
    model = tiny_net(seed)
    masks = Masks.of(model, model.parameters(), seed=seed)
    source = torch.Generator().manual_seed(seed)
    masks.update({w.name: torch.rand(w.weight.shape, generator=source) < 0.5 for w in masks})
    for w in masks:
        w.dense_grad = torch.randn(w.weight.shape, generator=source)
    return masks


def drop_and_grow(fraction, grow=scores.gradient):
    return DropAndGrow(ALWAYS, Constant(fraction), drop=scores.magnitude, grow=grow)


def now(masks):
    return copied({w.name: w.mask for w in masks})


# -- DropAndGrow ------------------------------------------------------------------------------------------------------


@given(st.floats(0, 1), st.integers(0, 5), st.sampled_from([scores.random, scores.gradient]))
def test_rewiring_keeps_each_layers_count(fraction, seed, grow):
    masks = half_live(seed)
    new = drop_and_grow(fraction, grow)(TrainingState(masks), 2)
    assert {name: int(mask.sum()) for name, mask in new.items()} == {w.name: w.active for w in masks}


@GROWTH
def test_a_fraction_of_zero_changes_nothing(grow):
    masks = half_live()
    before = now(masks)
    masks.update(drop_and_grow(0.0, grow)(TrainingState(masks), 2))
    assert all(torch.equal(w.mask, before[w.name]) for w in masks)


@given(st.floats(0, 1), st.integers(0, 5), st.booleans())
def test_rigl_drops_small_weights_and_grows_large_gradients(fraction, seed, fresh):
    masks = half_live(seed)
    if fresh:  # weights that have just grown are zero, like dead ones, and yet live
        for w in masks:
            w.weight.data[w.weight.abs() < w.weight.abs().median()] = 0
    new = drop_and_grow(fraction)(TrainingState(masks), 2)
    for w in masks:
        assert torch.equal(new[w.name], rewired_plainly(w.weight, w.dense_grad, w.mask, fraction))


@GROWTH
def test_grown_entries_start_from_zero_and_are_told(grow):
    masks = half_live()
    before = now(masks)
    told = masks.update(drop_and_grow(0.5, grow)(TrainingState(masks), 2))
    for w in masks:
        grown = w.mask & ~before[w.name]
        assert grown.any()
        assert not w.weight[grown].any()
        assert torch.equal(told[w.name], grown)


def test_a_weight_dropped_and_grown_at_once_keeps_its_value():
    masks = half_live()
    w = masks[0]
    live = w.mask.nonzero()
    smallest = tuple(live[w.weight[w.mask].abs().argmin()])
    w.dense_grad[smallest] = 1e6
    value = w.weight[smallest].item()
    masks.update(drop_and_grow(0.3)(TrainingState(masks), 2))
    assert w.mask[smallest]
    assert w.weight[smallest].item() == value != 0


def test_a_layer_that_got_no_gradient_to_grow_by_keeps_its_mask():
    masks = half_live()
    masks[0].dense_grad = None
    before = masks[0].mask.clone()
    assert torch.equal(drop_and_grow(1.0)(TrainingState(masks), 2)["0.weight"], before)


def grown_at(step, seed):
    masks = half_live()
    for w in masks:
        w.seed = seed
    masks.seed_generators(step)
    return drop_and_grow(0.5, scores.random)(TrainingState(masks), step)


def test_random_growth_depends_on_seed_and_step_and_on_nothing_else():
    first = grown_at(3, seed=1)
    torch.rand(7)
    assert all(torch.equal(first[name], mask) for name, mask in grown_at(3, seed=1).items())
    for other in (grown_at(4, seed=1), grown_at(3, seed=2)):
        assert not any(torch.equal(first[name], mask) for name, mask in other.items())


def test_layers_of_one_shape_grow_at_different_places():
    model = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9))
    masks = Masks.of(model, model.parameters())
    masks.seed_generators(2)
    one, other = (scores.random(w) for w in masks)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(("grow", "reads"), [(scores.gradient, True), (scores.random, False)])
def test_a_rule_says_whether_it_reads_the_dense_gradient(grow, reads):
    assert drop_and_grow(0.3, grow).dense_gradient is reads
    assert DropAndGrow(ALWAYS, Constant(0.3), drop=grow, grow=scores.random).dense_gradient is reads
    assert PruneTo(ALWAYS, Constant(0.5), keep=grow, distribution=uniform).dense_gradient is reads


def test_the_published_methods_drop_by_magnitude_and_grow_by_their_own_score():
    [rigl], [evolution] = (kind().plan(0.9, 1000).rules for kind in (fs.methods.RigL, fs.methods.SET))
    assert (rigl.drop, rigl.grow, rigl.weight_step) == (scores.magnitude, scores.gradient, False)
    assert (evolution.drop, evolution.grow, evolution.weight_step) == (scores.magnitude, scores.random, True)
    assert [rigl.fraction(step) for step in (0, 375, 750)] == pytest.approx([0.3, 0.15, 0.0])
    assert {evolution.fraction(step) for step in (0, 375, 750)} == {0.3}
    assert rigl.when == evolution.when == Every(100, until=750)


# -- PruneTo ----------------------------------------------------------------------------------------------------------


def dense_net(shapes, seed=0):
    """Linear layers of given shapes with distinct weights, all live."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.ModuleList(nn.Linear(inputs, outputs, bias=False) for inputs, outputs in shapes)
    return Masks.of(model, model.parameters())


@given(
    st.lists(st.tuples(st.integers(2, 9), st.integers(2, 9)), min_size=1, max_size=5),
    st.sampled_from(sorted(DISTRIBUTIONS)),
    st.integers(2, 12),
)
def test_pruning_never_brings_a_weight_back_and_ends_on_target(shapes, distribution, updates):
    masks = dense_net(shapes)
    prune = PruneTo(ALWAYS, Cubic(0.0, 0.6, until=updates), scores.magnitude, DISTRIBUTIONS[distribution])
    for step in range(1, updates + 1):
        before = now(masks)
        masks.update(prune(TrainingState(masks), step))
        assert masks.active == masks.budget(prune.sparsity(step))
        assert all((before[w.name] | ~w.mask).all() for w in masks)
    assert masks.active == masks.budget(0.6)


def test_pruning_brings_nothing_back_where_rounding_would_give_a_layer_more():
    # Ten weights split over layers of 9, 7 and 3 as 5, 4, 1, and nine as 4, 3, 2: the third would regain one.
    masks = dense_net([(3, 3), (7, 1), (3, 1)])
    for live in (10, 9):
        before = now(masks)
        masks.update(PruneTo(ALWAYS, Constant(1 - live / 19), scores.magnitude, uniform)(TrainingState(masks), 2))
        assert masks.active == live
        assert all((before[w.name] | ~w.mask).all() for w in masks)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_pruning_brings_nothing_back_in_the_place_of_weights_that_are_not_finite(distribution, odd):
    masks = half_live()
    before = now(masks)
    with torch.no_grad():
        for w in masks:
            w.weight[w.mask] = odd
    prune = PruneTo(ALWAYS, Constant(0.8), scores.magnitude, DISTRIBUTIONS[distribution])
    new = prune(TrainingState(masks), 2)
    assert not any((new[w.name] & ~before[w.name]).any() for w in masks)
    assert sum(int(mask.sum()) for mask in new.values()) == masks.budget(0.8)


@pytest.mark.parametrize("odd", ODD)
def test_growing_by_scores_that_are_not_finite_takes_nothing_away(odd):
    masks = half_live()
    before = now(masks)
    grow = GrowTo(ALWAYS, Constant(0.2), lambda w: torch.full_like(w.weight, odd), uniform)
    new = grow(TrainingState(masks), 2)
    assert all((new[name] | ~mask).all() for name, mask in before.items())
    assert sum(int(mask.sum()) for mask in new.values()) == masks.budget(0.2)


def test_momenta_whose_sum_is_beyond_float32_have_a_mean():
    (w, *_) = half_live()
    w.momentum = torch.full_like(w.weight, 3e38)
    assert mean_momentum(w, w.mask) == pytest.approx(3e38, rel=1e-5)


@pytest.mark.parametrize("distribution", sorted(DISTRIBUTIONS))
def test_pruning_tells_a_live_zero_from_a_dead_one(distribution):
    masks = dense_net([(4, 5), (5, 4)])
    masks.update({w.name: torch.arange(20).view(w.weight.shape) >= 8 for w in masks})
    for w in masks:
        w.weight.data.zero_()
    new = PruneTo(ALWAYS, Constant(0.5), scores.magnitude, DISTRIBUTIONS[distribution])(TrainingState(masks), 2)
    assert sum(int(mask.sum()) for mask in new.values()) == 20
    assert all((w.mask | ~new[w.name]).all() for w in masks)


def test_pruning_keeps_the_largest_weights_of_each_layer():
    masks = dense_net([(4, 5), (5, 4)])
    new = PruneTo(ALWAYS, Constant(0.75), scores.magnitude, uniform)(TrainingState(masks), 2)
    for w in masks:
        assert w.weight.abs()[new[w.name]].min() > w.weight.abs()[~new[w.name]].max()


@given(st.integers(2, 40), st.integers(1, 60), st.floats(0.05, 1.0))
@pytest.mark.filterwarnings("ignore:every=")
def test_gradual_pruning_is_planned_to_end_exactly_on_target(steps, every, until):
    [prune] = fs.methods.GMP(every=every, until=until).plan(0.9, steps).rules
    acts = [step for step in range(2, steps + 1) if prune.when(step)]
    assert acts
    assert prune.sparsity(acts[-1]) == 0.9


# -- GrowTo -----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 5), st.floats(0, 0.9), st.sampled_from(sorted(DISTRIBUTIONS)))
def test_growing_takes_nothing_away_and_ends_on_target_whatever_the_layers_have(seed, sparsity, distribution):
    masks = dense_net([(9, 9), (3, 4), (5, 8)], seed)
    source = torch.Generator().manual_seed(seed)
    densities = torch.rand(3, generator=source).tolist()
    masks.update(
        {w.name: torch.rand(w.weight.shape, generator=source) < d for w, d in zip(masks, densities, strict=True)}
    )
    before, live = now(masks), masks.active
    masks.update(
        GrowTo(ALWAYS, Constant(sparsity), scores.random, DISTRIBUTIONS[distribution])(TrainingState(masks), 2)
    )
    assert masks.active == max(live, masks.budget(sparsity))
    assert all((w.mask | ~before[w.name]).all() for w in masks)


def test_growing_brings_the_best_of_the_dead():
    masks = half_live()
    before = now(masks)
    masks.update(GrowTo(ALWAYS, Constant(0.3), scores.gradient, uniform)(TrainingState(masks), 2))
    for w in masks:
        grown = w.mask & ~before[w.name]
        assert w.grad.abs()[grown].min() >= w.grad.abs()[~w.mask].max()


# -- the timetable ----------------------------------------------------------------------------------------------------


def test_until_is_a_step_or_a_share_of_the_run():
    assert updates(10, 0.75, 200) == updates(10, 150, 200) == Every(10, until=150)
    assert updates(10, 999, 200) == Every(10, until=200)


def test_a_period_too_long_for_the_run_gives_about_ten_updates_and_says_so():
    with pytest.warns(UserWarning, match="every=100 leaves no update in 75 steps: using every=7") as caught:
        timetable = updates(100, 0.75, 100)
    assert len(caught) == 1
    assert sum(map(timetable, range(101))) == 10
