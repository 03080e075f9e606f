"""The study of the paper's regime: choices, claims and page beside plain forms on made-up runs; the page beside its data."""

import doctest
import itertools
import statistics
import sys

import pytest

from flatsparse.experiments.equivalence import below
from flatsparse.experiments.run.config import RunConfig
from flatsparse.experiments.stats import holm, p_value
from tests.benchmark_scripts import FOLDER, importable

PAIRS = [("S²-SAM", "plain"), ("label smoothing", "plain"), ("S²-SAM", "label smoothing")]


@pytest.fixture(scope="module")
def study():
    """The script of the runs, and that of the page."""
    with importable():
        import regime
        import regime_page

        yield regime, regime_page


def made_up(cell, gain):
    """The line of a run; validation is best at S²-SAM's second ρ for MEST(EM), and at the first candidate otherwise."""
    best = cell.arm == "S²-SAM" and cell.method == "mest"
    wobble = ((7 * cell.seed + 1) * (len(cell.arm) + len(cell.method)) + int(100 * cell.sparsity)) % 13 / 130
    return {
        **cell.identity,
        "gradients": 10_560,
        "train_accuracy": 80.0,
        "validation": 80.0 - (cell.candidate != best),
        "test": 80.0 + wobble + gain * (cell.arm == "S²-SAM"),
        "images_per_second": 500.0 + cell.seed,
    }


def plan(regime, gain):
    """Made-up lines of all runs, in their order."""
    lines = {}
    for place in regime.PLACES:
        lines |= {cell: made_up(cell, gain) for cell in regime.for_choice(place[0])}
        lines |= {cell: made_up(cell, gain) for cell in regime.compared(list(lines.values()), *place)}
    for place in regime.PLACES:
        lines |= {cell: made_up(cell, gain + 0.5) for cell in regime.other_rho(list(lines.values()), *place)}
    return list(lines.values())


@pytest.fixture(scope="module")
def lines(study):
    return plan(study[0], 2.0)


def measured_by(lines, place, arm, candidate=None):
    """The test accuracies of the compared seeds, at the chosen candidate unless another is given."""
    chosen = int((arm, place[0]) == ("S²-SAM", "mest")) if candidate is None else candidate
    own = [
        line
        for line in lines
        if (line["data"], line["method"], line["sparsity"], line["arm"]) == ("cifar10", *place, arm)
    ]
    found = {line["seed"]: line["test"] for line in own if line["seed"] != 100 and line["candidate"] == chosen}
    return [found[seed] for seed in range(5)]


def test_all_candidates_take_as_many_gradients_as_plain_training_of_the_length_that_the_plan_names(study):
    regime, _ = study
    steps = regime.SHARED["epochs"] * -(-45_000 // regime.SHARED["batch_size"])
    written = " ".join((FOLDER / "regime.md").read_text(encoding="utf-8").split())
    assert (
        f"{regime.SHARED['epochs']} epochs of {regime.SHARED['batch_size']} images a step ({steps:,} steps)" in written
    )
    for arm, candidates in regime.ARMS.items():
        runs = [RunConfig.of(**regime.SHARED, **one) for one in candidates]
        assert {(run.passes, run.schedule.epochs) for run in runs} == {(1, regime.SHARED["epochs"])}
        assert len(candidates) == (1 if arm == "plain" else 2)


def test_one_seed_that_is_not_compared_chooses_once_for_each_method(study, lines):
    regime, _ = study
    assert regime.CHOICE not in regime.SEEDS
    assert [regime.chosen(lines, "mest", arm) for arm in regime.ARMS] == [0, 1, 0]
    assert [regime.chosen(lines, "rigl", arm) for arm in regime.ARMS] == [0, 0, 0]
    assert regime.chosen([{**line, "validation": 80.0} for line in lines], "mest", "S²-SAM") == 0
    tricked = [{**line, "validation": 99.0 - line["candidate"]} if line["seed"] < 5 else line for line in lines]
    assert regime.chosen(tricked, "mest", "S²-SAM") == 1
    assert {cell.sparsity for cell in regime.for_choice("rigl")} == {0.95}


def test_compared_are_all_arms_at_their_chosen_candidate_and_cifar_100_once(study, lines):
    regime, _ = study
    for place in regime.PLACES:
        cells = list(regime.compared(lines, *place))
        own = [(cell.arm, cell.candidate, cell.seed) for cell in cells if cell.data == "cifar10"]
        chosen = {arm: regime.chosen(lines, place[0], arm) for arm in regime.ARMS}
        assert own == [(arm, chosen[arm], seed) for seed, arm in itertools.product(regime.SEEDS, regime.ARMS)]
        beside = [(cell.data, cell.arm, cell.candidate, cell.seed) for cell in cells if cell.data != "cifar10"]
        assert beside == (
            [("cifar100", "plain", 0, 0), ("cifar100", "S²-SAM", 1, 0)] if place == ("mest", 0.98) else []
        )


def test_nine_claims_are_paired_by_seed_and_corrected_together(study, lines):
    regime, page = study
    found = page.arms.claims(page.complete(lines), (page.GROUP,))
    every = {(place, pair): claim for place, own in found.items() for pair, claim in own.items()}
    assert list(every) == list(itertools.product(regime.PLACES, PAIRS))
    for (place, (arm, base)), claim in every.items():
        values, others = (measured_by(lines, place, name) for name in (arm, base))
        assert list(claim.gaps) == [a - b for a, b in zip(values, others, strict=True)]
    assert [claim.p for claim in every.values()] == holm([p_value(claim.gaps) for claim in every.values()])
    assert every[("mest", 0.98), ("S²-SAM", "plain")].above
    assert any(claim.no_gain for claim in every.values())
    for claim in every.values():
        assert (claim.excluded in ("gain", "difference")) == (below(claim.gaps, 0.5) < 0.05)


def test_the_table_has_the_means_the_differences_and_the_speed(study, lines):
    _, page = study
    text = page.rendered(lines)
    assert "Incomplete" not in text
    assert page.NOTHING not in text
    assert "\n55 runs: " in text  # of the plan as it was registered
    rows = {
        tuple(row.split(" | ")[:2]): row.strip("| ").split(" | ") for row in text.splitlines() if row.startswith("| ")
    }
    found = page.arms.claims(page.complete(lines), (page.GROUP,))
    row, mest = rows["| MEST(EM) 98 %", "S²-SAM"], measured_by(lines, ("mest", 0.98), "S²-SAM")
    assert row[2:6] == ["ρ 0.1", "10560", "80.0", f"{statistics.fmean(mest):.2f}"]
    assert row[6].startswith(("**+2.0", "**+1.9"))
    assert row[6].endswith("\\*")
    assert row[-1] == "502"
    smoothing = rows["| RigL 90 %", "label smoothing"]
    assert smoothing[2] == "smoothing 0.05"
    claim = found["rigl", 0.9]["S²-SAM", "label smoothing"]
    assert smoothing[8] == page.judged.difference(claim.gaps, 2) + "\\*"
    assert len(rows) == 2 + 3 * 3  # head and line below it
    assert "that chose: MEST(EM) ρ 0.03 79.00 %, MEST(EM) ρ 0.1 80.00 %, MEST(EM) smoothing 0.05 80.00 %, " in text
    assert "RigL ρ 0.03 80.00 %, RigL ρ 0.1 79.00 %" in text
    once = {line["arm"]: line for line in lines if line["data"] == "cifar100"}
    assert (
        f"plain {once['plain']['test']:.2f} %, S²-SAM {once['S²-SAM']['test']:.2f} % with the ρ of CIFAR-10, 0.1."
        in text
    )


@pytest.mark.parametrize("sparsity", [0.95, 0.9])
def test_the_other_rho_is_told_beside_plain_training_and_the_chosen_one(study, lines, sparsity):
    regime, page = study
    cells = list(regime.other_rho(lines, "rigl", sparsity))
    assert {(cell.arm, cell.candidate, cell.method, cell.sparsity) for cell in cells} == {
        ("S²-SAM", 1, "rigl", sparsity)
    }
    place = ("rigl", sparsity)
    other = measured_by(lines, place, "S²-SAM", candidate=1)
    texts = [
        page.judged.difference([a - b for a, b in zip(other, values, strict=True)], 2)
        for values in (measured_by(lines, place, arm) for arm in ("plain", "label smoothing", "S²-SAM"))
    ]
    said = (
        f"- **{page.name(place)} at ρ 0.1**, which lost the choice to ρ 0.03 by 1.00 points of validation accuracy. S²-SAM has"
        f" {statistics.fmean(other):.2f} %: to plain {texts[0]}, to label smoothing {texts[1]}, to ρ 0.03 {texts[2]}."
    )
    assert said in page.rendered(lines)
    assert page.at_other_rho(lines)[place] == other
    assert "**RigL 90 % at" not in page.rendered(lines[:-1])  # not all of its runs


@pytest.mark.parametrize(
    ("gain", "word"), [(2.0, "For"), (0.0, "Against"), (-2.0, "Against"), (0.25, "Both: there is a gain")]
)
def test_the_verdict_is_that_of_the_plan(study, gain, word):
    regime, page = study
    found = page.arms.claims(page.complete(plan(regime, gain)), (page.GROUP,))
    assert page.verdict(found["mest", 0.98]["S²-SAM", "plain"]).startswith(f"**{word}")


def test_the_larger_rho_cost_rigl_half_a_point_and_more_as_limitations_and_changelog_say(study):
    regime, page = study
    found = regime.measured()
    runs, other = page.complete(found), page.at_other_rho(found)
    assert list(other) == [("rigl", 0.95), ("rigl", 0.9)]
    for place, values in other.items():
        assert runs[place].settings("S²-SAM")["rho"] == 0.1  # 0.03 is the other
        lower, higher = runs[place].validation("S²-SAM").values()
        assert round((higher - lower) / 100 * regime.SHARED["validation_size"]) == 5  # images
        assert statistics.fmean(values) - statistics.fmean(runs[place].values("S²-SAM")) > 0.5
        assert page.judged.mean_interval(page.judged.paired(values, runs[place].values("plain"))).high > 0


def test_a_wide_interval_leaves_it_open(study):
    _, page = study
    (claim,) = page.judged.claims({"wide": [3.0, -3.0, 2.0, -2.0, 1.0]}).values()
    assert page.verdict(claim).startswith("**Neither")
    assert page._told(claim).endswith("(not sure)")


def test_what_is_incomplete_is_told_and_left_out(study, lines):
    regime, page = study
    assert page.standing(lines) == ""
    assert len(lines) == 4 + 4 + 3 * 15 + 2 + 2 * 5
    short = [line for line in lines if (line["sparsity"], line["seed"]) != (0.9, 4)]
    text = page.rendered(short)
    assert text.startswith("**Incomplete: 52 of 55 runs of the plan are measured; ")
    assert "RigL 90 %" not in text.split("## Not measured")[0]
    assert "**RigL 95 %.**" in text
    without = [line for line in lines if line["data"] == "cifar10"]
    assert f"CIFAR-100: {page.NOTHING}" in page.rendered(without)
    assert list(page.complete(without)) == list(regime.PLACES)
    assert page.complete(lines[:4]) == {}
    assert page.rendered([]).startswith("**Incomplete: 0 of 55 runs of the plan are measured; ")


def test_a_page_of_an_incomplete_plan_is_printed_and_not_written(study, tmp_path, capsys, monkeypatch):
    from planned import write_page

    target = tmp_path / "page.md"
    monkeypatch.setattr(sys, "argv", ["regime_page.py"])
    with pytest.raises(SystemExit, match=r"2 of 3 runs of the plan are measured: page\.md is not written"):
        write_page(target, [1, 2], "2 of 3 runs of the plan are measured", str)
    monkeypatch.setattr(sys, "argv", ["regime_page.py", "--partial"])
    write_page(target, [1, 2], "2 of 3 runs of the plan are measured", str)
    assert capsys.readouterr().out == "[1, 2]\n"
    assert not target.exists()
    monkeypatch.setattr(sys, "argv", ["regime_page.py"])
    write_page(target, [1, 2, 3], "", str)
    assert target.read_text(encoding="utf-8") == "[1, 2, 3]"


def test_examples_hold(study):
    assert doctest.testmod(study[1]).failed == 0


def test_the_page_is_made_of_the_data(study):
    regime, page = study
    found = regime.measured()
    if said := page.standing(found):
        assert not page.PAGE.exists()
        pytest.skip(said)
    assert page.PAGE.read_text(encoding="utf-8") == page.rendered(found)
    assert len({line["gradients"] for line in found}) == 1
