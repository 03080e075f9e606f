"""Choosing exactly k entries, and splitting a total exactly."""

import math
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flatsparse import InputError
from flatsparse.sparse import threshold
from flatsparse.sparse.threshold import Scores, kth_largest
from flatsparse.sparse.topk import apportion, keep_top, top_counts

# Few values, so that ties are the rule.
SCORES = st.lists(st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 0.5, 2.0, math.inf, math.nan]), min_size=1, max_size=30)


def by_sorting(scores: list[float], k: int, among: list[bool]) -> list[bool]:
    """The plain form: sort by score, then by place; NaN counts as the lowest score there is."""
    rank = {i: -math.inf if math.isnan(s) else s for i, s in enumerate(scores) if among[i]}
    kept = sorted(rank, key=lambda i: (-rank[i], i))[:k]
    return [i in kept for i in range(len(scores))]


@given(st.data(), SCORES)
def test_keep_top_is_a_stable_sort(data, scores):
    k = data.draw(st.integers(0, len(scores)))
    assert keep_top(torch.tensor(scores), k).tolist() == by_sorting(scores, k, [True] * len(scores))


@given(st.data(), SCORES)
def test_keep_top_among_keeps_only_candidates(data, scores):
    among = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    k = data.draw(st.integers(0, sum(among)))
    kept = keep_top(torch.tensor(scores), k, among=torch.tensor(among))
    assert kept.tolist() == by_sorting(scores, k, among)


def by_sampling(sample: list[float]):
    """A context in which a threshold is sought between bounds from this sample, however few the scores."""
    return mock.patch.multiple(threshold, FEW=0), mock.patch.object(Scores, "sample", return_value=torch.tensor(sample))


@given(st.data(), SCORES)
def test_whatever_the_sample_the_result_is_exact(data, scores):
    sample = data.draw(st.lists(st.sampled_from([*scores, -7.0, 7.0]), max_size=200))
    among = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    k = data.draw(st.integers(0, sum(among)))
    few, sampled = by_sampling(sample)
    with few, sampled:
        kept = keep_top(torch.tensor(scores), k, among=torch.tensor(among))
    assert kept.tolist() == by_sorting(scores, k, among)


@given(st.data(), st.lists(SCORES, min_size=1, max_size=4), st.booleans())
def test_counts_are_those_of_one_ranking_of_all(data, parts, sampled):
    scores = [s for part in parts for s in part]
    k = data.draw(st.integers(0, len(scores)))
    few, sample = by_sampling(data.draw(st.lists(st.sampled_from(scores), max_size=200)))
    kept = torch.tensor(by_sorting(scores, k, [True] * len(scores))).split([len(part) for part in parts])
    if not sampled:
        assert top_counts([torch.tensor(part) for part in parts], k) == [int(part.sum()) for part in kept]
        return
    with few, sample:
        assert top_counts([torch.tensor(part) for part in parts], k) == [int(part.sum()) for part in kept]


MANY = {
    "all different": lambda n: torch.rand(n),
    "mostly zero": lambda n: torch.where(torch.rand(n) < 0.1, torch.rand(n), 0.0),
    "few values": lambda n: torch.randint(-3, 4, (n,)).float(),
    "all equal": lambda n: torch.ones(n),
    "sorted": lambda n: torch.arange(float(n)),
    "wild": lambda n: (
        torch.rand(n).masked_fill(torch.rand(n) < 0.2, math.nan).masked_fill(torch.rand(n) < 0.2, -math.inf)
    ),
    "half infinite": lambda n: torch.rand(n).masked_fill(torch.rand(n) < 0.5, math.inf),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", MANY)
def test_of_many_scores_keep_top_is_a_stable_sort(kind, dtype):
    torch.manual_seed(0)
    n = 3 * threshold.FEW
    scores, among = MANY[kind](n).to(dtype), torch.rand(n) < 0.6
    ranks = np.argsort(-torch.where(scores.isnan(), -math.inf, scores).double().numpy(), kind="stable")
    for only in (torch.ones(n, dtype=torch.bool), among):
        order = torch.from_numpy(ranks)[only[torch.from_numpy(ranks)]]
        for k in (1, 17, n // 10, n // 2, int(only.sum()) - 1):
            expected = torch.zeros(n, dtype=torch.bool)
            expected[order[:k]] = True
            assert torch.equal(keep_top(scores, k, None if only.all() else only), expected)


def test_of_many_scores_few_are_left_between_the_bounds():
    torch.manual_seed(0)
    scores = Scores([torch.rand(2**19), torch.rand(2**18)], [None, None])
    left = []
    own = Scores.between
    with mock.patch.object(Scores, "between", lambda *args: (left.append(own(*args)), left[-1])[-1]):
        for k in (1, 1000, scores.size // 3, scores.size - 1):
            kth_largest(scores, k)
    assert max(map(len, left)) < 0.05 * scores.size


def test_the_choice_leaves_torchs_random_numbers_alone():
    torch.manual_seed(0)
    scores = torch.rand(2 * threshold.FEW)
    before = torch.get_rng_state()
    first = keep_top(scores, 1000)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(keep_top(scores, 1000), first)


def test_counts_refuse_more_than_there_are():
    with pytest.raises(ValueError, match="of 3 entries"):
        top_counts([torch.zeros(1), torch.zeros(2)], 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("k", [0, 1, 11, 23, 24])
def test_keep_top_keeps_shape_and_count(dtype, k):
    kept = keep_top(torch.zeros(2, 3, 4, dtype=dtype), k)
    assert (kept.shape, kept.dtype, int(kept.sum())) == ((2, 3, 4), torch.bool, k)


def test_keep_top_reads_a_transposed_tensor_in_its_own_order():
    scores = torch.arange(6.0).view(2, 3).t()
    assert torch.equal(keep_top(scores, 2), scores >= 4)


def test_ties_go_to_the_lower_index():
    assert keep_top(torch.ones(5), 2).tolist() == [True, True, False, False, False]


def test_nan_is_never_kept_before_a_number():
    assert keep_top(torch.tensor([math.nan, -5.0, math.nan, 0.0]), 2).tolist() == [False, True, False, True]


@pytest.mark.parametrize("k", [-1, 4])
def test_keep_top_refuses_a_count_that_does_not_fit(k):
    with pytest.raises(ValueError, match="of 3 entries"):
        keep_top(torch.zeros(3), k)


def test_keep_top_refuses_more_than_the_candidates():
    with pytest.raises(ValueError, match="of 1 entries"):
        keep_top(torch.zeros(3), 2, among=torch.tensor([True, False, False]))


@st.composite
def splits(draw):
    """A total, weights, and bounds that can hold it."""
    n = draw(st.integers(1, 8))
    weights = draw(st.lists(st.integers(1, 50), min_size=n, max_size=n))
    floors = draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))
    caps = [floor + draw(st.integers(0, 40)) for floor in floors]
    return draw(st.integers(sum(floors), sum(caps))), weights, caps, floors


def level(total, weights, caps, floors):
    """The plain form: raise one level λ until the shares clamp(λ·weight, floor, cap) sum to the total."""
    low, high = 0.0, max(caps) + 1.0
    for _ in range(100):
        middle = (low + high) / 2
        shares = [min(max(middle * w, f), c) for w, c, f in zip(weights, caps, floors, strict=True)]
        low, high = (middle, high) if sum(shares) < total else (low, middle)
    return shares


@given(splits())
def test_apportion_meets_the_total_within_the_bounds(split):
    total, _, caps, floors = split
    shares = apportion(*split)
    assert sum(shares) == total
    assert all(f <= s <= c for s, c, f in zip(shares, caps, floors, strict=True))


@given(splits())
def test_apportion_is_proportional_but_for_less_than_one(split):
    assert all(abs(got - real) < 1 + 1e-6 for got, real in zip(apportion(*split), level(*split), strict=True))


@given(st.integers(0, 1000), st.lists(st.integers(1, 99), min_size=1, max_size=9))
def test_unbound_shares_are_within_one_of_the_quotient_and_in_order(total, weights):
    shares = apportion(total, weights, caps=[total] * len(weights))
    assert all(abs(s - total * w / sum(weights)) < 1 for s, w in zip(shares, weights, strict=True))
    assert [s for _, s in sorted(zip(weights, shares, strict=True))] == sorted(shares)


def test_exact_quotients_are_met_exactly():
    assert apportion(60, [1, 2, 3], caps=[99] * 3) == [10, 20, 30]


def test_weights_that_are_all_zero_share_alike():
    assert apportion(9, [0, 0, 0], caps=[9, 9, 9]) == [3, 3, 3]


def test_a_capped_share_leaves_the_rest_to_the_others_in_proportion():
    assert apportion(16, [10, 1, 2], caps=[4, 99, 99]) == [4, 4, 8]


@pytest.mark.parametrize(("total", "floors"), [(11, None), (-1, None), (3, [2, 2])])
def test_apportion_refuses_an_impossible_total(total, floors):
    with pytest.raises(InputError, match="cannot split"):
        apportion(total, [1, 1], caps=[5, 5], floors=floors)


def test_a_default_device_does_not_matter_to_scores_that_have_one():
    scores = torch.rand(100_000)
    before = keep_top(scores, 5_000)
    torch.set_default_device("meta")
    try:
        assert torch.equal(keep_top(scores, 5_000), before)
    finally:
        torch.set_default_device(None)
