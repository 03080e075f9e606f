"""Equivalence by two one-sided tests, against scipy's and by hand; and where comparisons and tables write it."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import stats

from flatsparse.common.errors import InputError
from flatsparse.experiments.comparison_table import Row, Table
from flatsparse.experiments.equivalence import Equivalence, below, equivalence
from flatsparse.experiments.metric import ACCURACY, Metric
from flatsparse.experiments.report.sentences import comparison_sentences
from flatsparse.experiments.reproduce.table import RowDifference
from flatsparse.experiments.reproduce.text import judged, ruled_out
from flatsparse.experiments.reproduce.verdict import Claim, judge
from flatsparse.experiments.stats import Interval, holm, mean_interval

NARROW = (0.1, 0.2, -0.1, 0.0, 0.1)  # mean 0.06, deviation 0.114
WIDE = (1.0, -1.0, 0.1)


def test_the_tests_are_students_one_sided():
    gaps = [0.4, -0.2, 0.3, 0.1]
    found = equivalence(gaps, 0.5)
    assert found.p_gain == stats.ttest_1samp(gaps, 0.5, alternative="less").pvalue
    assert found.p_loss == stats.ttest_1samp(gaps, -0.5, alternative="greater").pvalue
    assert found.p == max(found.p_gain, found.p_loss)


def test_the_tests_by_hand():
    """Mean 0.06, deviation √0.013: t = (0.06 − 0.5) / √(0.013 / 5) = −8.629, and 10.983 on the other side, of 4 degrees."""
    found = equivalence(NARROW, 0.5)
    assert found.p_gain == pytest.approx(stats.t.cdf(-0.44 / math.sqrt(0.0026), 4))
    assert found.p_loss == pytest.approx(stats.t.sf(0.56 / math.sqrt(0.0026), 4))
    # Of one degree of freedom, t is Cauchy's: two values 0 and 0.2 have t = (0.1 − 0.5) / 0.1 = −4, and p = ½ − atan(4)/π.
    assert below([0.0, 0.2], 0.5) == pytest.approx(0.5 - math.atan(4) / math.pi)


@pytest.mark.parametrize(
    ("gaps", "excluded"),
    [
        (NARROW, "difference"),
        ((-2.0, 0.2, -0.9, -0.4, -1.1), "gain"),
        ((2.0, -0.2, 0.9, 0.4, 1.1), "loss"),
        (WIDE, None),
        ((0.0,), None),
        ((0.0,) * 4, None),  # the sign test's p is 1/16
        ((0.0,) * 5, "difference"),  # and 1/32
        ((0.5,) * 8, "loss"),  # not below the margin, which a gain may have
        ((0.1 + 0.2, 0.3, 0.3, 0.3, 0.3), "difference"),  # alike but for rounding
    ],
)
def test_what_is_ruled_out(gaps, excluded):
    assert equivalence(gaps, 0.5).excluded == excluded


def test_both_sides_are_ruled_out_where_the_90_percent_interval_is_within_the_margins():
    source = np.random.default_rng(0)
    outcomes = set()
    for _ in range(200):
        gaps = source.normal(0.1, 0.4, 6).tolist()
        low, high = stats.ttest_1samp(gaps, 0.0).confidence_interval(0.9)
        within = low > -0.5 and high < 0.5
        assert (equivalence(gaps, 0.5).excluded == "difference") == within
        outcomes.add(within)
    assert outcomes == {False, True}


def test_a_gain_of_the_margin_is_ruled_out_wrongly_once_in_twenty():
    source = np.random.default_rng(1)
    wrong = sum(equivalence(source.normal(0.5, 1.0, 5).tolist(), 0.5).p_gain < 0.05 for _ in range(4000))
    assert 0.04 < wrong / 4000 < 0.06


@pytest.mark.parametrize("margin", [0.0, -0.5, math.inf, math.nan])
def test_a_margin_that_cannot_be_is_refused(margin):
    with pytest.raises(InputError, match=r"margin .* is not usable"):
        equivalence(NARROW, margin)


def test_a_value_that_is_not_finite_rules_nothing_out():
    with pytest.raises(InputError, match="not finite"):
        equivalence([0.1, math.nan], 0.5)


@pytest.mark.parametrize("gaps", [NARROW, WIDE, (0.0,)])
def test_it_comes_back_from_its_record(gaps):
    found = equivalence(gaps, 0.5)
    assert Equivalence.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found
    assert Equivalence.from_json(None) is None


def test_the_claims_of_a_table_are_corrected_together():
    claims = [Claim(NARROW, margin=0.5), Claim((-0.4, 0.3, 0.2), margin=0.5), Claim(WIDE), Claim((), margin=0.5)]
    first, second, without, never = (one.equivalence for one in judge(claims))
    alone = [equivalence(claim.gaps, 0.5) for claim in claims[:2]]
    assert [first.p_gain, second.p_gain] == holm([one.p_gain for one in alone])
    assert [first.p_loss, second.p_loss] == holm([one.p_loss for one in alone])
    assert (without, never) == (None, None)


# -- in a comparison ----------------------------------------------------------------------------------------------------


def row(gaps, *, metric=ACCURACY, margin=0.5, sharpness="s2sam"):
    base = sharpness == "none"
    return Row(
        sharpness=sharpness,
        rho=0.0 if base else 0.1,
        seeds=tuple(range(len(gaps))),
        accuracies=tuple(90.0 + gap for gap in gaps),
        train_accuracy=99.0,
        validation_accuracy=None,
        difference=None if base else mean_interval(gaps),
        gaps=() if base else tuple(gaps),
        unpaired=0,
        gradients_per_step=1.0,
        step_time=1.0,
        step_times=(1.0,) * len(gaps),
        cosine=math.nan,
        ball=(0.1,) * len(gaps),
        ball_radius=0.1,
        folders=(),
        metric=metric,
        margin=None if base else margin,
    )


def table(gaps, **options):
    rows = row([0.0] * len(gaps), sharpness="none"), row(gaps, **options)
    return Table(label_noise=0.0, rows=rows, over_random=None, tried={}, compared=options.get("metric", ACCURACY))


@pytest.mark.parametrize(
    ("gaps", "says"),
    [
        (
            NARROW,
            "is within noise: +0.06 points, {bounds}. No difference larger than 0.5 points, with 95 % confidence.",
        ),
        (WIDE, "is within noise: +0.03 points, {bounds}. Neither a gain nor a loss of 0.5 points is ruled out."),
        ((3.0, 3.1, 2.9), "helps: +3.00 points, {bounds}."),  # that no loss is larger says less
        ((-3.0, -3.1, -2.9), "hurts: -3.00 points, {bounds}."),
        (
            (-0.5, 0.2, -0.5, -0.4),
            "is within noise: -0.30 points, {bounds}. No gain larger than 0.5 points, with 95 % confidence.",
        ),
        ((0.2,), "+0.20 points with one seed, so nothing can be said; 1 gradient a step."),
    ],
)
def test_a_comparison_says_what_is_ruled_out(gaps, says):
    [sentence] = comparison_sentences(table(gaps))
    bounds = f"95 % interval {mean_interval(gaps).bounds('+.2f')}; 1 gradient a step"
    assert sentence.partition(" (ρ = 0.1)")[2].lstrip(": ") == says.format(bounds=bounds)


def test_a_lower_score_is_a_gain_where_lower_is_better():
    error = Metric("error", "lower")
    found = table([-2.0, 0.2, -0.9, -0.4, -1.1], metric=error, margin=0.5)
    assert found.row("s2sam").equivalence.excluded == "loss"
    assert "No loss larger than 0.5, with" in comparison_sentences(found)[0]


def test_a_comparison_keeps_it_and_reads_one_without_it():
    found = table(NARROW)
    saved = json.loads(json.dumps(found.to_json()))
    assert saved["rows"][1]["difference"]["equivalence"] == equivalence(NARROW, 0.5).to_json()
    assert Table.from_json(saved).row("s2sam").equivalence == found.row("s2sam").equivalence
    del saved["rows"][1]["difference"]["equivalence"]
    older = Table.from_json(saved)
    assert older.row("s2sam").equivalence is None
    [sentence] = comparison_sentences(older)
    assert sentence.endswith("a step.")


def test_a_score_of_no_known_unit_has_no_margin():
    assert table(NARROW, metric=Metric("words"), margin=None).row("s2sam").equivalence is None
    assert (ACCURACY.margin, Metric("words").margin) == (0.5, None)


# -- in the table of a recipe --------------------------------------------------------------------------------------------


def saved_row(verdict, found):
    difference = RowDifference(Interval(0.1, -0.1, 0.3, 5), 0.5, None, None, 0.4, found)
    fields = {"verdict": verdict, "unpaired": 0, "same_runs": None, "difference": difference.to_json()}
    return json.loads(json.dumps(fields))


def test_a_verdict_is_followed_by_what_is_ruled_out():
    narrow = equivalence(NARROW, 0.5)
    gain, loss = Equivalence(0.5, 0.01, 0.3), Equivalence(0.5, 0.3, 0.01)
    assert judged(saved_row("within noise", narrow)) == "within noise, no difference larger than 0.5"
    assert judged(saved_row("within noise", gain)) == "within noise, no gain larger than 0.5"
    assert judged(saved_row("helps", loss)) == "helps"
    assert judged(saved_row("hurts", gain)) == "hurts"
    assert judged(saved_row("within noise", None)) == "within noise"
    older = saved_row("within noise", gain)
    del older["difference"]["equivalence"]
    assert judged(older) == "within noise"
    assert ruled_out({"verdict": None, "difference": None}) == ""


def test_a_difference_comes_back_from_its_record():
    d = RowDifference(Interval(0.1, -0.1, 0.3, 5), 0.5, 12, None, 0.4, equivalence(NARROW, 0.5))
    saved = json.loads(json.dumps(d.to_json()))
    assert RowDifference.from_json(saved) == d
    del saved["equivalence"]
    assert RowDifference.from_json(saved) == dataclasses.replace(d, equivalence=None)
