import math

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import nn

from flatsparse.measure import surface as ls
from tests.helpers import image_batch, is_plus_zero, same, tiny_net


def some_masks(model, share=0.3, seed=0):
    """Random masks, with one filter pruned away, and the model's weights zero outside them."""
    source = torch.Generator().manual_seed(seed)
    masks = {n: torch.rand(p.shape, generator=source) < share for n, p in model.named_parameters() if p.ndim > 1}
    masks["3.weight"][2] = False
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).masked_fill_(~mask, 0)
    return masks


def mean_loss(model):
    inputs, targets = image_batch(0, size=16)
    return lambda weights: F.cross_entropy(torch.func.functional_call(model, weights, (inputs,)), targets)


def plane(model, masks=None):
    return ls.direction(model, 0, 0, masks=masks), ls.direction(model, 0, 1, masks=masks)


def weights(model):
    return {name: p.detach() for name, p in model.named_parameters()}


def plainly(model, plane, axis, loss):
    """Li et al. 2018 as they tell it: write the weights, look, go on."""
    before = [p.detach().clone() for p in model.parameters()]
    found = []
    for a in axis:
        for b in axis:
            with torch.no_grad():
                for name in plane[0]:
                    model.get_parameter(name).add_(a * plane[0][name] + b * plane[1][name])
                found.append(float(loss()))
                for p, w in zip(model.parameters(), before, strict=True):
                    p.copy_(w)
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("masked", [False, True])
def test_every_filter_of_a_direction_is_as_long_as_the_weights_own(masked):
    model = tiny_net()
    masks = some_masks(model)
    found = ls.direction(model, 0, masks=masks if masked else None)
    for name, d in found.items():
        for ours, theirs in zip(d, model.get_parameter(name), strict=True):
            assert float(ours.norm()) == pytest.approx(float(theirs.detach().norm()), rel=1e-5)
    assert float(found["3.weight"][2].abs().sum()) == 0  # the filter that is pruned away


def test_vectors_stay_and_matrices_do_not():
    found = ls.direction(tiny_net(), 0)
    assert set(found) == {"0.weight", "3.weight", "7.weight"}
    assert all(d.any() for d in found.values())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0.01, 0.99), a=st.floats(-2, 2), b=st.floats(-2, 2))
def test_masked_directions_leave_pruned_weights_exactly_zero(seed, share, a, b):
    model = tiny_net(seed % 7)
    masks = some_masks(model, share, seed)
    moved = []
    ls.losses(
        lambda w: moved.append(w) or torch.tensor(0.0), weights(model), plane(model, masks), torch.tensor([[a, b]])
    )
    for name, mask in masks.items():
        assert is_plus_zero(moved[0][name][~mask])


def test_without_masks_pruned_weights_move():
    model = tiny_net()
    masks = some_masks(model)
    found = ls.direction(model, 0)
    assert all(bool(found[name][~mask].any()) for name, mask in masks.items())


def test_networks_of_one_architecture_share_their_directions_up_to_length():
    one, other = ls.direction(tiny_net(0), 5), ls.direction(tiny_net(1), 5)
    for name in one:
        ours, theirs = one[name].flatten(1), other[name].flatten(1)
        assert torch.allclose(F.cosine_similarity(ours, theirs), torch.ones(len(ours)), atol=1e-5)
    assert same(one, ls.direction(tiny_net(0), 5))
    assert not torch.equal(one["0.weight"], ls.direction(tiny_net(0), 6)["0.weight"])


def test_directions_go_by_plain_names():
    model = tiny_net()
    wrapped = nn.Sequential()
    wrapped.add_module("module", model)
    ours = {f"module.{name}": d for name, d in ls.direction(model, 0).items()}
    assert same(ours, ls.direction(wrapped, 0))


@pytest.mark.parametrize("at_once", [1, 4])
def test_the_plain_double_loop_finds_the_same(at_once):
    model = tiny_net().eval()
    masks = some_masks(model)
    inputs, targets = image_batch(0, size=16)
    places = ls.axis(5)
    ours = ls.losses(mean_loss(model), weights(model), plane(model, masks), ls.grid(places), at_once)
    theirs = plainly(model, plane(model, masks), places, lambda: F.cross_entropy(model(inputs), targets))
    assert torch.allclose(ours.double(), theirs, rtol=1e-5)
    assert len(theirs.unique()) == 25


def test_the_centre_is_the_models_loss_and_the_weights_are_untouched():
    model = tiny_net().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = ls.losses(mean_loss(model), weights(model), plane(model), ls.grid(ls.axis(3)))
    inputs, targets = image_batch(0, size=16)
    assert torch.equal(found[4], F.cross_entropy(model(inputs), targets).detach())
    assert same(before, dict(model.state_dict()))


def test_roughness_by_hand():
    assert ls.roughness(torch.tensor([[1.0, 2.0], [3.0, 6.0]])) == 1.5
    assert ls.roughness(torch.full((3, 3), 7.0)) == 0
    assert ls.roughness(torch.tensor([0.0, 0.0, 2.0, 100.0]), clip=2.0) == 1.0
    assert ls.roughness(torch.tensor([0.0, 0.0, math.nan, math.inf]), clip=2.0) == 1.0


@pytest.mark.parametrize("points", [3, 25, 51])
def test_an_axis_is_even_and_has_its_middle_at_exactly_zero(points):
    places = ls.axis(points, 0.7)
    assert len(places) == points
    assert places[points // 2] == 0.0
    assert (places[0], places[-1]) == (-0.7, 0.7)
    assert torch.tensor(places).diff().std() < 1e-6
