import math

import numpy as np
import pytest
from scipy import stats

from flatsparse.lab.statistics import deviation, median, paired_difference


def test_the_interval_is_that_of_a_paired_t_test():
    ours, theirs = [91.0, 92.5, 90.0, 93.0], [90.0, 91.0, 90.5, 91.0]
    d = paired_difference(ours, theirs)
    low, high = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (d.low, d.high) == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("gaps", "verdict"),
    [
        ([1.0, 1.1, 0.9], "helps"),
        ([-1.0, -1.1, -0.9], "hurts"),
        ([1.0, -1.0, 0.1], "within noise"),
        ([5.0], "one seed only"),
    ],
)
def test_the_verdict_needs_an_interval_that_excludes_zero(gaps, verdict):
    assert paired_difference(gaps, [0.0] * len(gaps)).verdict == verdict


def test_the_interval_covers_the_truth_about_95_times_in_100():
    source = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        d = paired_difference(source.normal(1.0, 2.0, 5), np.zeros(5))
        hits += d.low <= 1.0 <= d.high
    assert 0.935 < hits / 2000 < 0.965


def test_one_value_has_no_deviation():
    assert math.isnan(deviation([1.0]))


def test_the_interval_of_a_median_covers_the_truth_about_95_times_in_100():
    source = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        found = median(np.exp(source.normal(np.log(1.05), 0.1, 20)).tolist())
        hits += found.low <= 1.05 <= found.high
    assert 0.91 < hits / 300 < 0.99


def test_the_interval_of_a_median_is_the_quantiles_of_resampled_medians():
    values = [1.0, 1.2, 0.9, 1.4, 1.1, 1.3, 2.0]
    plain = np.random.default_rng(5)
    medians = sorted(np.median(plain.choice(values, 7)) for _ in range(20_000))
    found = median(values)
    assert found.value == 1.2
    assert (found.low, found.high) == pytest.approx((medians[500], medians[19_500]), abs=0.1)


def test_a_median_ignores_one_wild_round_and_its_interval_does_not_move_with_chance():
    calm, wild = [1.0] * 19 + [1.1], [1.0] * 19 + [50.0]
    assert median(calm) == median(wild)
    assert median([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == median([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
