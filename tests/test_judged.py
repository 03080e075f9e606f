"""What pages of registered plans share, beside its plain forms."""

import doctest
import importlib
from pathlib import Path

import pytest
from scipy import stats

from flatsparse.experiments.stats import holm

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def judged(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("judged")


def test_its_examples_hold(judged):
    assert doctest.testmod(judged).failed == 0


def test_the_earlier_of_candidates_is_chosen_whose_means_differ_by_rounding_only(judged):
    first, second = [0.1, 0.2], [0.3, 0.0]
    assert judged.chosen({"first": first, "second": [value + 1e-13 for value in second]}) == "first"
    assert judged.chosen({"first": first, "second": [value + 1e-3 for value in second]}) == "second"


def test_claims_have_holms_p_over_all_and_two_one_sided_tests_of_those_that_are_not_sure(judged):
    gaps = {
        "gain": [2.0, 2.3, 1.8, 2.1, 2.0, 1.9],
        "loss": [-2.0, -2.3, -1.8, -2.1, -2.0, -1.9],
        "none": [0.1, -0.1, 0.2, -0.2, 0.1, -0.1],
        "no gain": [-2.4, 0.2, -0.9, 0.2, -1.6, -0.1],
        "unknown": [3.0, -3.0, 2.0, -2.0, 1.0, -1.0],
    }
    found = judged.claims(gaps)
    assert [claim.p for claim in found.values()] == holm([stats.ttest_1samp(own, 0).pvalue for own in gaps.values()])
    for name, (above, below, no_gain, verdict) in {
        "gain": (True, False, False, ""),
        "loss": (False, True, False, ""),
        "none": (False, False, True, "both"),
        "no gain": (False, False, True, "gain"),
        "unknown": (False, False, False, "neither"),
    }.items():
        claim = found[name]
        assert (claim.above, claim.below, claim.no_gain, claim.verdict) == (above, below, no_gain, verdict)
        gain = stats.ttest_1samp(gaps[name], 0.5, alternative="less").pvalue < 0.05
        loss = stats.ttest_1samp(gaps[name], -0.5, alternative="greater").pvalue < 0.05
        if not claim.sure:
            assert verdict == {(1, 1): "both", (1, 0): "gain", (0, 1): "loss", (0, 0): "neither"}[gain, loss]
