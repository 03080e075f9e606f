"""The study of what else is cheap: choices, differences and verdicts beside their plain forms, its page beside its data."""

import doctest
import statistics

import pytest

from flatsparse.experiments.equivalence import below
from flatsparse.experiments.stats import holm, mean_interval, p_value
from tests.benchmark_scripts import importable

GAINS = {
    "S²-SAM": 4.0,
    "label smoothing": 8.0,
    "early stopping": 1.0,
    "SAFE, S²-SAM": 2.0,
    "SAM, half the epochs": -3.0,
}


@pytest.fixture(scope="module")
def study():
    """The script of the runs and that of the page."""
    with importable():
        import referee
        import referee_page

        yield referee, referee_page


def made_up(referee, gains):
    """Lines whose validation is best at candidate 2, or 0 with right labels; arms gain with wrong labels only."""
    lines = []
    for cell in referee.cells():
        candidates = referee.ARMS[cell.arm]
        best = min(2 if cell.noise else 0, len(candidates) - 1)
        gain = gains.get(cell.arm, 0.0) if cell.noise else 0.0
        wobble = (7 * cell.seed + 1) * len(cell.arm) % 13 / 24
        lines.append(
            {
                **vars(cell),
                "settings": candidates[cell.candidate],
                "epoch": 40,
                "gradients": 200,
                "train_accuracy": 99.0,
                "validation": 90.0 - abs(cell.candidate - best) + (cell.seed % 3),
                "test": (50.0 if cell.arm.startswith("SAFE") else 80.0) + gain + wobble - abs(cell.candidate - best),
            }
        )
    return lines


@pytest.fixture(scope="module")
def lines(study):
    referee, _ = study
    return made_up(referee, GAINS)


@pytest.fixture(scope="module")
def found(study, lines):
    """The claims of the made-up lines."""
    _, page = study
    return page.tables.claims(page.by_labels(lines), (page.RIGL, page.SAFE))


def picked(lines, arm, noise, candidate, seeds):
    """The test accuracies of a candidate, in the order of the seeds."""
    own = {line["seed"]: line["test"] for line in lines if _of(line) == (arm, noise, candidate)}
    return [own[seed] for seed in seeds]


def _of(line):
    return line["arm"], line["noise"], line["candidate"]


def test_validation_on_other_seeds_chooses_for_each_kind_of_labels_and_the_earlier_of_equals(study, lines):
    referee, page = study
    runs = page.by_labels(lines)
    assert (runs[0.0].chosen("S²-SAM"), runs[0.2].chosen("S²-SAM")) == (0, 2)
    assert runs[0.2].settings("label smoothing") == {"label_smoothing": 0.4}
    assert runs[0.2].chosen("plain") == 0
    assert set(referee.CHOICE).isdisjoint(referee.SEEDS)
    alike = page.by_labels([{**line, "validation": 90.0} for line in lines])
    assert alike[0.2].chosen("S²-SAM") == 0
    tricked = [
        {**line, "validation": 100.0} if line["candidate"] == 3 and line["seed"] < 10 else line for line in lines
    ]
    assert page.by_labels(tricked)[0.2].chosen("S²-SAM") == 2  # seeds that are compared have no part in it


def test_claims_are_paired_within_a_method_and_corrected_over_all_of_them(study, lines, found):
    referee, _ = study
    ours, smoothing = (picked(lines, arm, 0.2, 2, referee.SEEDS) for arm in ("S²-SAM", "label smoothing"))
    gaps = [a - b for a, b in zip(ours, smoothing, strict=True)]
    assert list(found[0.2]["S²-SAM", "label smoothing"].gaps) == gaps
    assert mean_interval(gaps).mean == pytest.approx(-4, abs=0.5)
    pairs = list(found[0.2])
    rigl = [arm for arm in referee.ARMS if not arm.startswith("SAFE") and arm != "plain"]
    assert [pair for pair in pairs if pair[1] == "plain"] == [(arm, "plain") for arm in rigl]
    assert {arm for ours, arm in pairs if ours == "S²-SAM"} == {"plain", *rigl} - {"S²-SAM"}
    assert [pair for pair in pairs if "SAFE" in pair[0] + pair[1]] == [
        ("SAFE, S²-SAM", "SAFE"),
        ("SAFE, SAM, half the epochs", "SAFE"),
        ("SAFE, S²-SAM", "SAFE, SAM, half the epochs"),
    ]
    every = [claim for own in found.values() for claim in own.values()]
    assert len(every) == 2 * (16 + 15 + 3)
    assert [claim.p for claim in every] == holm([p_value(claim.gaps) for claim in every])
    assert {claim.no_gain for claim in every if not claim.sure} >= {True}
    assert all(claim.no_gain == (below(claim.gaps, 0.5) < 0.05) for claim in every if not claim.sure)


def test_a_row_has_what_was_chosen_the_means_and_both_differences(study, lines, found):
    referee, page = study
    table = page.tables.table(
        page.by_labels(lines)[0.2], (page.RIGL, page.SAFE), found[0.2], page.NAMES, referee.EPOCHS
    )
    rows = {row.split(" | ")[0].removeprefix("| "): row.strip("| ").split(" | ") for row in table.splitlines()}
    smoothed = statistics.fmean(picked(lines, "label smoothing", 0.2, 2, referee.SEEDS))
    assert rows["label smoothing"][1:5] == ["smoothing 0.4", "200 (1.00)", "99.0", f"{smoothed:.1f}"]
    assert rows["label smoothing"][5] == found[0.2]["label smoothing", "plain"].text
    assert rows["label smoothing"][5].startswith("**+8.")
    assert rows["label smoothing"][5].endswith("\\*")
    assert rows["label smoothing"][7].startswith("**−4.")
    assert rows["SAM in half the epochs"][1] == "ρ 0.5, 20 epochs"
    assert rows["early stopping"][1] == "epoch 40"
    assert rows["random direction"][6] == "both"  # nothing is gained or lost
    right = page.tables.table(
        page.by_labels(lines)[0.0], (page.RIGL, page.SAFE), found[0.0], page.NAMES, referee.EPOCHS
    )
    assert "| S²-SAM | ρ 0.1† |" in right
    assert "| S²-SAM with weight decay | ρ 0.2, decay 0.001 |" in right  # two settings differ among its candidates


def test_at_equal_strength_both_have_the_same_one_and_rho_is_chosen_there(study, lines):
    referee, page = study
    runs = page.by_labels(lines)[0.2]
    # Candidates of S²-SAM with smoothing are 0.2 and 0.8 at ρ 0.2, then at ρ 0.5; validation is best at the third.
    pairs = {"label smoothing 0.2": (2, 1), "label smoothing 0.8": (1, 3)}
    found = page.at_equal_strength(runs)
    for name, (ours, alone) in pairs.items():
        values = picked(lines, "S²-SAM, label smoothing", 0.2, ours, referee.SEEDS)
        base = picked(lines, "label smoothing", 0.2, alone, referee.SEEDS)
        gaps = [a - b for a, b in zip(values, base, strict=True)]
        assert f"{name} {page.judged.difference(gaps)}" in found
    assert [text.rsplit(" ", 3)[0] for text in found][:2] == ["weight decay 0.001", "weight decay 0.005"]
    assert len(found) == 4


def test_hindsight_is_of_candidates_that_were_run_on_the_compared_seeds(study, lines):
    referee, page = study
    better = [{**line, "test": line["test"] + 9 * (line["candidate"] == 3)} for line in lines]
    assert "label smoothing (smoothing 0.8: +8.0)" in page.hindsight(page.by_labels(better)[0.2])
    without = [line for line in better if line["candidate"] != 3 or line["seed"] in referee.CHOICE]
    assert page.hindsight(page.by_labels(without)[0.2]) == []


def test_sentences_name_what_is_surely_above_and_below(study, lines):
    _, page = study
    text = page.rendered(lines)
    right, wrong, ours = text.split("- **")[1:4]
    assert "Surely above plain: none. Surely below: none." in right
    above = wrong.split("above plain: ")[1].split(". Surely below")[0]
    assert [name.split(" (")[0] for name in above.split(", ")] == ["label smoothing", "S²-SAM", "early stopping"]
    assert "Surely below: SAM in half the epochs (−" in wrong
    assert "The largest mean is that of label smoothing, **+8" in wrong
    assert "and surely below label smoothing; to" in ours
    assert "1 of 15 have a larger mean." in ours.split("With wrong labels")[1]
    assert f"{len(lines):,} runs" in text
    assert "with wrong labels none" in text  # the chosen candidates are the best of the compared seeds too
    worse = [{**line, "test": 70.0} if _of(line) == ("S²-SAM", 0.2, 2) else line for line in lines]
    assert "with wrong labels S²-SAM (ρ 0.2: +1" in page.rendered(worse)


@pytest.mark.parametrize(
    ("gains", "holds"),
    [
        (GAINS, False),
        ({**GAINS, "label smoothing": 2.0}, True),
        ({"label smoothing": 0.1}, False),
        ({"S²-SAM": 4.0, "S²-SAM, label smoothing": 9.0}, True),  # which has S²-SAM, and is no rival of it
    ],
)
def test_the_verdict_is_that_of_the_plan(study, gains, holds):
    referee, page = study
    right, wrong = page.counts(page.tables.claims(page.by_labels(made_up(referee, gains)), (page.RIGL, page.SAFE)))
    assert "**Right labels: it does not hold.** S²-SAM is not surely above plain" in right
    assert f"**Wrong labels: {'it holds' if holds else 'it does not hold'}.**" in wrong
    assert ("Regularizers surely above S²-SAM: label smoothing." in wrong) == (gains is GAINS)


def test_the_picture_has_every_arm_but_the_plain_ones(study, lines):
    referee, page = study
    figure = page.picture(lines)
    assert [axis.get_title() for axis in figure.axes] == ["right labels", "wrong labels"]
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert shown == [page.NAMES.get(arm, arm) for arm in referee.ARMS if arm not in ("plain", "SAFE")]
    (dot,) = [one for one in figure.axes[1].containers if one.lines[0].get_ydata()[0] == shown.index("label smoothing")]
    assert dot.lines[0].get_xdata()[0] == pytest.approx(8, abs=0.5)
    assert dot.lines[0].get_markerfacecolor() == "black"


def test_the_examples_of_tables_hold(study):
    _, page = study
    assert doctest.testmod(page.tables).failed == 0


def test_the_page_is_made_of_the_data(study):
    referee, page = study
    found = referee.measured()
    if len(found) < len(list(referee.cells())):
        assert not page.PAGE.exists()
        pytest.skip(f"{len(found)} of the plan's runs are measured so far")
    assert page.PAGE.read_text(encoding="utf-8") == page.rendered(found)
    plain = max(line["gradients"] for line in found if line["arm"] == "plain")
    assert all(line["gradients"] <= plain for line in found)
