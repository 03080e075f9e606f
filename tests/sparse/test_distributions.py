"""Distributions: how a budget of active weights is allocated to layers."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import flatsparse as fs
from flatsparse.measure.flops import cost
from flatsparse.sparse.distributions import DISTRIBUTIONS, erdos_renyi, erdos_renyi_kernel, global_ranking, uniform
from flatsparse.sparse.masks import Masks


def of_shapes(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def budget(scores, sparsity):
    total = sum(s.numel() for s in scores.values())
    return total - round(sparsity * total)


def resnet50():
    """Every conv and linear weight of ResNet-50 v1.5: name -> (shape, output positions at 224x224)."""
    layers = {"stem": ((64, 3, 7, 7), 112**2)}
    inputs, size = 64, 56
    for stage, blocks in enumerate([3, 4, 6, 3]):
        width = 64 * 2**stage
        for block in range(blocks):
            before, stride = size, 2 if stage > 0 and block == 0 else 1
            size //= stride
            name = f"{stage}.{block}"
            layers[f"{name}.1"] = ((width, inputs, 1, 1), before**2)
            layers[f"{name}.2"] = ((width, width, 3, 3), size**2)
            layers[f"{name}.3"] = ((4 * width, width, 1, 1), size**2)
            if block == 0:
                layers[f"{name}.down"] = ((4 * width, inputs, 1, 1), size**2)
            inputs = 4 * width
    layers["fc"] = ((1000, inputs), 1)
    return layers


RESNET50 = resnet50()
SCORES50 = of_shapes({name: shape for name, (shape, _) in RESNET50.items()})
DENSE50 = sum(SCORES50[name].numel() * places for name, (_, places) in RESNET50.items())


def flops_ratio(counts):
    return sum(counts[name] * places for name, (_, places) in RESNET50.items()) / DENSE50


def test_the_table_of_resnet50_is_the_published_net():
    assert sum(s.numel() for s in SCORES50.values()) == pytest.approx(25.503e6, rel=1e-4)
    assert pytest.approx(8.18e9, rel=1e-3) == 2 * DENSE50


@pytest.mark.parametrize(("sparsity", "ratio", "dense"), [(0.8, 0.414, 8), (0.9, 0.242, 1), (0.95, 0.122, 0)])
def test_erk_on_resnet50_costs_what_rigl_publishes(sparsity, ratio, dense):
    counts = erdos_renyi_kernel(SCORES50, budget(SCORES50, sparsity))
    assert flops_ratio(counts) == pytest.approx(ratio, abs=0.002)
    assert sum(counts[name] == s.numel() for name, s in SCORES50.items()) == dense


@pytest.mark.parametrize(("sparsity", "ratio"), [(0.8, 0.223), (0.9, 0.126), (0.95, 0.077)])
def test_uniform_on_resnet50_costs_what_rigl_publishes(sparsity, ratio):
    sparse = {name: s for name, s in SCORES50.items() if name != "stem"}
    counts = {"stem": SCORES50["stem"].numel(), **uniform(sparse, budget(sparse, sparsity))}
    assert flops_ratio(counts) == pytest.approx(ratio, abs=0.002)


@pytest.fixture(scope="module")
def resnet32():
    return fs.models.resnet32()


@pytest.mark.parametrize(("sparsity", "ratio"), [(0.9, 0.175), (0.95, 0.088), (0.98, 0.035)])
def test_erk_on_resnet32_costs_the_reference_share(resnet32, sparsity, ratio):
    weights = {w.name: w.weight for w in Masks.of(resnet32, resnet32.parameters())}
    counts = erdos_renyi_kernel(weights, budget(weights, sparsity))
    dense = cost(resnet32, torch.zeros(1, 3, 32, 32))
    assert dense.dense == pytest.approx(2 * 275.6e6, rel=1e-3)
    live = sum(flops * counts[name] / weights[name].numel() for name, flops in dense.layers.items())
    assert live / dense.dense == pytest.approx(ratio, abs=0.002)


SHAPES = st.one_of(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 3]), st.sampled_from([1, 3])),
)
NETS = st.lists(SHAPES, min_size=1, max_size=7).map(lambda shapes: {f"layer{i}": s for i, s in enumerate(shapes)})


def textbook_erk(scores, total):
    """Evci et al.'s loop: share out by raw density; whoever would be over-full most is dense, and again."""
    raw = {name: sum(s.shape) / s.numel() for name, s in scores.items()}
    dense = set()
    while True:
        free = [name for name in scores if name not in dense]
        left = total - sum(scores[name].numel() for name in dense)
        epsilon = left / sum(raw[name] * scores[name].numel() for name in free) if free else 0.0
        largest = max((epsilon * raw[name] for name in free), default=0.0)
        if largest <= 1:
            break
        dense |= {name for name in free if epsilon * raw[name] == largest}
    return {name: s.numel() * (1.0 if name in dense else epsilon * raw[name]) for name, s in scores.items()}


@given(NETS, st.floats(0, 0.99))
def test_erk_is_the_textbook_loop_to_the_weight(shapes, sparsity):
    scores = of_shapes(shapes)
    total = budget(scores, sparsity)
    real = textbook_erk(scores, total)
    assume(min(real.values()) >= 1)
    counts = erdos_renyi_kernel(scores, total)
    assert all(abs(counts[name] - real[name]) < 1 + 1e-6 for name in scores)


@given(NETS, st.sampled_from(sorted(DISTRIBUTIONS)), st.data())
def test_every_distribution_meets_the_total_and_empties_no_layer(shapes, name, data):
    source = torch.Generator().manual_seed(0)
    scores = {layer: torch.rand(shape, generator=source) for layer, shape in shapes.items()}
    total = data.draw(st.integers(len(scores), sum(s.numel() for s in scores.values())))
    counts = DISTRIBUTIONS[name](scores, total)
    assert list(counts) == list(scores)
    assert sum(counts.values()) == total
    assert all(1 <= counts[layer] <= s.numel() for layer, s in scores.items())


def test_uniform_gives_every_layer_the_same_density():
    assert uniform(of_shapes({"a": (10, 10), "b": (20, 10, 3, 3)}), 190) == {"a": 10, "b": 180}


def test_erdos_renyi_leaves_the_kernel_out_and_erk_counts_it():
    # ER: 144·(4+4)/(4·4) = 72 to 256·(16+16)/(16·16) = 32. ERK: 4+4+3+3 = 14 to 16+16 = 32.
    scores = of_shapes({"conv": (4, 4, 3, 3), "linear": (16, 16)})
    assert erdos_renyi(scores, 104) == {"conv": 72, "linear": 32}
    assert erdos_renyi_kernel(scores, 92) == {"conv": 28, "linear": 64}


def test_er_and_erk_agree_on_linear_layers():
    scores = of_shapes({"a": (30, 20), "b": (7, 30), "c": (2, 7)})
    assert erdos_renyi(scores, 120) == erdos_renyi_kernel(scores, 120)


def test_global_keeps_each_layers_share_of_the_largest():
    scores = {"a": torch.tensor([9.0, 1.0, 8.0]), "b": torch.tensor([7.0, 0.0, 0.5])}
    assert global_ranking(scores, 3) == {"a": 2, "b": 1}


def test_global_leaves_one_weight_in_a_layer_it_would_empty():
    assert global_ranking({"a": torch.full((5,), 9.0), "b": torch.zeros(5)}, 4) == {"a": 3, "b": 1}


@pytest.mark.parametrize("name", sorted(DISTRIBUTIONS))
def test_fewer_weights_than_layers_is_refused_in_one_line(name):
    scores = {"a": torch.ones(4, 4), "b": torch.ones(4, 4)}
    with pytest.raises(fs.InputError, match=r"leaves 1 active weights for 2 layers: give at most 0\.9375") as caught:
        DISTRIBUTIONS[name](scores, 1)
    assert "\n" not in str(caught.value)
