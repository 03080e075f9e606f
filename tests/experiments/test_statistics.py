import json
import math

import numpy as np
import pytest
from scipy import stats

from flatsparse.common.errors import InputError
from flatsparse.experiments.stats import (
    Interval,
    deviation,
    holm,
    mean_interval,
    median,
    p_value,
    paired_difference,
    seeds_needed,
)


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


@pytest.mark.parametrize("gaps", [[1.0, 1.5, 0.2], [5.0], [0.5, 0.5]])
def test_an_interval_comes_back_from_its_record(gaps):
    d = mean_interval(gaps)
    saved = json.loads(json.dumps(d.to_json(), allow_nan=False))
    assert Interval.from_json({**saved, "verdict": d.verdict}) == d
    assert (saved["interval95"] == [None, None]) == (not d.bounded)


def test_an_interval_is_written_in_three_ways():
    d = Interval(1.0, -0.5, 2.5, 4)
    assert (f"{d}", f"{d:.1f}") == ("+1.00 [-0.50, +2.50]", "1.0 [-0.5–2.5]")
    assert (d.with_half(), d.with_half(".1f"), d.bounds()) == ("+1.00 ± 1.50", "1.0 ± 1.5", "-0.50 to +2.50")
    alone, alike = mean_interval([2.0]), mean_interval([2.0, 2.0])
    assert f"{alone}" == alone.with_half() == alike.with_half() == "+2.00"
    assert (alone.bounds(), alike.bounds()) == ("one seed", "unknown, the seeds are alike")


@pytest.mark.parametrize("odd", [math.nan, math.inf])
@pytest.mark.parametrize("found", [lambda v: paired_difference(v, [0.0] * 3), p_value, median])
def test_a_value_that_is_not_finite_does_not_pass_for_noise(found, odd):
    with pytest.raises(InputError, match="not finite"):
        found([1.0, odd, 2.0])


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
    assert found.mean == 1.2
    assert (found.low, found.high) == pytest.approx((medians[500], medians[19_500]), abs=0.1)


def test_a_median_ignores_one_wild_round_and_its_interval_does_not_move_with_chance():
    calm, wild = [1.0] * 19 + [1.1], [1.0] * 19 + [50.0]
    assert median(calm) == median(wild)
    assert median([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == median([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])


def test_p_value_is_that_of_the_t_test():
    gaps = [0.3, -0.2, 0.9, 0.4]
    for against in (0.0, 1.0):
        assert p_value(gaps, against) == pytest.approx(stats.ttest_1samp(gaps, against).pvalue)
    assert p_value([0.0, 0.0]) == 1.0


def test_a_few_equal_differences_are_no_certainty():
    third = 100 / 3  # one image of three
    for gaps in ([0.5, 0.5], [0.5] * 5, [third, 2 * third - third], [0.0, 0.0]):
        assert not paired_difference(gaps, [0.0] * len(gaps)).bounded
        assert p_value(gaps) >= 0.05
    assert p_value([0.5] * 6) == 2 * 0.5**6  # all six on one side of nothing
    assert paired_difference([0.5] * 6, [0.0] * 6).verdict == "helps"
    assert p_value([0.5, 0.5], against=0.5) == 1.0
    assert seeds_needed(0.0, 0.5) is None


def test_holm_steps_down():
    values = [0.04, 0.001, 0.3, 0.012]
    # The plain form: claims are made from the smallest p on, while p times what is left stays within the level.
    for level in (0.002, 0.01, 0.037, 0.05, 0.5):
        made = set()
        for left, place in zip(range(4, 0, -1), sorted(range(4), key=values.__getitem__), strict=True):
            if values[place] * left > level:
                break
            made.add(place)
        assert {n for n, p in enumerate(holm(values)) if p <= level} == made


def test_seeds_needed_have_the_power_by_simulation():
    pairs = seeds_needed(1.0, 0.8)
    drawn = np.random.default_rng(0).normal(0.8, 1.0, size=(20_000, pairs))
    power = float(np.mean(stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05))
    fewer = float(np.mean(stats.ttest_1samp(drawn[:, :-1], 0, axis=1).pvalue < 0.05))
    assert fewer < 0.8 + 0.005
    assert power > 0.8 - 0.005
    assert seeds_needed(1.0, -0.8) == pairs
    assert seeds_needed(0.01, 0.5) == 2  # where scipy's noncentral t is NaN
    among = seeds_needed(1.0, 0.8, claims=8)
    drawn = np.random.default_rng(0).normal(0.8, 1.0, size=(20_000, among))
    found = float(np.mean(8 * stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05))
    assert found == pytest.approx(0.82, abs=0.03)
    assert seeds_needed(float("nan"), 1.0) is None
    assert seeds_needed(1.0, 1e-4) is None
