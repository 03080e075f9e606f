import math

import numpy as np
import pytest
from scipy import stats

from flatsparse.lab.statistics import deviation, paired_difference


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
