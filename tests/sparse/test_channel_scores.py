"""Leverage, residuals, draws, filter scores and rankings beside their plain forms."""

import itertools
import math

import pytest
import torch

import flatsparse as fs
from flatsparse.schedules import Cosine, Cubic
from flatsparse.sparse.channel_scores import (
    active_fraction,
    active_kernels,
    draw,
    leverage,
    mean_active_magnitude,
    mean_magnitude,
    residuals,
    select_channels,
)

sizes = pytest.mark.parametrize(("rows", "columns", "rank"), [(9, 4, 2), (12, 7, 5), (5, 5, 3), (30, 6, 1)])


def matrix(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@sizes
def test_leverage_is_the_diagonal_of_the_projector_on_the_leading_right_space(rows, columns, rank):
    given = matrix(rows, columns)
    _, vectors = torch.linalg.eigh(given.T @ given)  # eigenvalues rise, so the leading ones come last
    leading = vectors[:, columns - rank :]
    assert torch.allclose(leverage(given, rank), (leading @ leading.T).diagonal())
    assert math.isclose(leverage(given, rank).sum(), rank)


def test_leverage_of_a_wide_matrix_is_the_l1_norm_where_zero_rows_are_none():
    wide = matrix(3, 5)
    assert torch.equal(leverage(wide, 2), wide.abs().sum(0))
    padded = torch.zeros(8, 5, dtype=torch.float64)
    padded[[1, 4, 6]] = wide
    assert torch.equal(leverage(padded, 2), leverage(wide, 2))
    assert not torch.allclose(leverage(matrix(5, 5), 2), matrix(5, 5).abs().sum(0))


def test_leverage_keeps_the_columns_that_span_the_rest():
    one, other = matrix(10, 2).T
    tall = torch.stack([5 * one, 0.01 * other, 4 * other, 0.02 * one], 1)
    assert leverage(tall, 2).argsort(descending=True)[:2].sort().values.tolist() == [0, 2]


@sizes
def test_residuals_are_distances_from_the_least_squares_fit(rows, columns, rank):
    given, kept = matrix(rows, columns), torch.arange(columns) < rank
    span = given[:, kept]
    for column, found in zip(given.T, residuals(given, kept), strict=True):
        fit = torch.linalg.solve(span.T @ span, span.T @ column)  # the normal equations
        assert math.isclose(found, (column - span @ fit).norm(), abs_tol=1e-9)
    again = torch.cat([given, given[:, :1]], 1)  # a column twice in the span changes nothing
    both = torch.cat([kept, torch.tensor([True])])
    assert torch.allclose(residuals(again, both)[:-1], residuals(given, kept), atol=1e-9)


def test_draws_follow_the_softmax_without_replacement():
    scores, among, count = torch.tensor([0.3, 9.0, 1.2, 0.0], dtype=torch.float64), [0, 2, 3], 2
    wanted = {}
    for first, second in itertools.permutations(among, 2):  # drawn one by one
        chance, left = 1.0, list(among)
        for pick in (first, second):
            chance *= math.exp(scores[pick]) / sum(math.exp(scores[i]) for i in left)
            left.remove(pick)
        pair = frozenset((first, second))
        wanted[pair] = wanted.get(pair, 0.0) + chance
    source, draws = torch.Generator().manual_seed(1), 4000
    mask = torch.tensor([i in among for i in range(4)])
    found = [frozenset(draw(scores, count, mask, source).nonzero().flatten().tolist()) for _ in range(draws)]
    for pair, chance in wanted.items():
        spread = math.sqrt(chance * (1 - chance) / draws)
        assert abs(found.count(pair) / draws - chance) < 4 * spread
    assert set(found) == set(wanted)


def test_scores_of_filters_are_plain_means():
    weight = matrix(3, 2 * 4).view(3, 2, 2, 2).float()
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(2)) < 0.4
    mask[0] = False
    mask[1, 0] = False
    weight *= mask
    for channel in range(3):
        w, m = weight[channel], mask[channel]
        values, live = w.abs().flatten().tolist(), m.flatten().tolist()
        kernels = [bool(m[i].any()) for i in range(2)]
        wanted = {
            mean_magnitude: sum(values) / 8,
            mean_active_magnitude: sum(values) / max(1, sum(live)),
            active_fraction: sum(live) / 8,
            active_kernels: sum(kernels) / 2,
        }
        for score, value in wanted.items():
            assert math.isclose(score([(weight, mask)])[channel], value, rel_tol=1e-6)


def test_a_filter_of_a_linear_layer_has_a_kernel_of_one_weight_an_input():
    mask = torch.tensor([[True, False], [False, False]])
    assert active_kernels([(torch.ones(2, 2), mask)]).tolist() == [0.5, 0.0]


def test_scores_of_several_layers_count_every_entry_once():
    parts = [(matrix(3, 4), torch.ones(3, 4, dtype=torch.bool)), (matrix(3, 2, 1), torch.ones(3, 2, dtype=torch.bool))]
    together = torch.cat([w for w, _ in parts], 1)
    assert torch.allclose(mean_magnitude(parts), together.abs().mean(1))


@pytest.mark.parametrize("seed", range(5))
def test_a_ranking_keeps_the_largest_of_all_but_for_floors(seed):
    source = torch.Generator().manual_seed(seed)
    scores = [torch.rand(n, generator=source) for n in (4, 7, 3)]
    scores[2] -= 1  # a group that only its floor keeps
    floors = [1, 2, 2]
    kept = select_channels(scores, 8, floors)
    plain = {(g, int(i)) for g, s in enumerate(scores) for i in s.argsort(descending=True)[: floors[g]]}
    rest = sorted(((float(s[i]), g, i) for g, s in enumerate(scores) for i in range(len(s)) if (g, i) not in plain))
    plain |= {(g, i) for _, g, i in rest[-(8 - len(plain)) :]}
    assert {(g, int(i)) for g, mask in enumerate(kept) for i in mask.nonzero()} == plain
    more = select_channels(scores, 10, floors)
    assert all((few <= many).all() for few, many in zip(kept, more, strict=True))


def test_a_ranking_says_when_floors_exceed_the_total():
    with pytest.raises(fs.InputError, match="3 channels cannot be left"):
        select_channels([torch.rand(3), torch.rand(3)], 3, [2, 2])


def test_schedules_are_the_papers():
    regrown, removed = Cosine(0.3, 0.0, until=180), Cubic(0.0, 0.4, until=130)
    for t in (1, 50, 179, 180):
        assert math.isclose(regrown(t), 0.3 / 2 * (1 + math.cos(math.pi * t / 180)), abs_tol=1e-12)
    for t in (1, 50, 130):
        assert math.isclose(removed(t), 0.4 - 0.4 * (1 - t / 130) ** 3, abs_tol=1e-12)
