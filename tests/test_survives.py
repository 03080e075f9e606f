"""The study of what survives: its choices and differences beside their plain forms, and its page beside its data."""

import doctest
import statistics

import pytest

from flatsparse.experiments.stats import holm, p_value
from tests.benchmark_scripts import importable


@pytest.fixture(scope="module")
def study():
    """The script of the runs and that of the page."""
    with importable():
        import survives
        import survives_page

        yield survives, survives_page


def score(cell, name, split):
    """Made-up accuracies: those of validation are best at ρ 0.5 after int4 and at ρ 0.2 otherwise."""
    best = 0.5 if name == "int4" else 0.2
    gain = 0.0 if cell.rho is None else (3.0 if cell.rho == best else 1.0)
    shift = (7 * cell.seed + 3 * len(name)) % 5 / 10 + (cell.seed % 3) * (0.0 if cell.arm == "plain" else 0.1)
    return 80 + gain + shift + (5 if split == "validation" else 0)


@pytest.fixture(scope="module")
def lines(study):
    survives, _ = study
    names = ("as trained", *survives.CHANGES, f"{survives.CHANGES[-1]} back")
    return [
        {
            **vars(cell),
            "test": {name: score(cell, name, "test") for name in names},
            "validation": {name: score(cell, name, "validation") for name in names},
        }
        for cell in survives.cells()
    ]


def test_rho_is_chosen_on_other_seeds_by_validation_after_the_change(study, lines):
    survives, page = study
    own = page.by_setting(lines)[0.9, 0.2]
    assert own.chosen("s2sam", "int4") == 0.5
    assert own.chosen("s2sam", "as trained") == 0.2
    assert own.chosen("plain", "int4") is None
    assert set(survives.CHOICE).isdisjoint(survives.SEEDS)


def test_differences_are_paired_by_seed_and_corrected_over_all_claims(study, lines):
    survives, page = study
    runs = page.by_setting(lines)
    picked = {
        (line["arm"], line["rho"], line["seed"]): line["test"]["int4"]
        for line in lines
        if (line["sparsity"], line["noise"]) == (0.95, 0.0)
    }
    plain = [picked["s2sam", 0.5, seed] - picked["plain", None, seed] for seed in survives.SEEDS]
    assert runs[0.95, 0.0].gaps("s2sam", 0.5, "int4") == plain
    found = page.claims(runs)
    assert len(found) == 3 * 2 * 8
    every = [
        own.gaps("s2sam", own.chosen("s2sam", change), change) for own in runs.values() for change in survives.CHANGES
    ]
    assert [claim.p for claim in found.values()] == holm([p_value(gaps) for gaps in every])


def test_the_page_has_the_means_and_the_chosen_rho(study, lines):
    survives, page = study
    text = page.rendered(lines)
    own = [line for line in lines if (line["sparsity"], line["noise"], line["arm"]) == (0.0, 0.0, "plain")]
    mean = statistics.fmean(line["test"]["int4"] for line in own if line["seed"] in survives.SEEDS)
    row = next(line for line in text.splitlines() if line.startswith("| int4 |"))
    assert row.startswith(f"| int4 | {mean:.1f} | **+")
    assert "of 24 differences of S²-SAM are sure" in text.replace("\n", " ")
    assert row.count("(0.2)") == 4  # the ρ of the accuracy comes first
    assert text.count("(0.5)") == 6 * 4


def test_the_part_that_a_change_makes_leaves_out_what_there_was_before(study, lines):
    survives, page = study
    own = page.by_setting(lines)[0.9, 0.0]

    def gaps(change):
        found = {
            (line["arm"], line["rho"], line["seed"]): line["test"][change]
            for line in lines
            if (line["sparsity"], line["noise"]) == (0.9, 0.0)
        }
        return [found["s2sam", 0.2, seed] - found["plain", None, seed] for seed in survives.SEEDS]

    expected = [after - before for after, before in zip(gaps("int4"), gaps("as trained"), strict=True)]
    assert own.by_change("s2sam", 0.2, "int4") == pytest.approx(expected)


@pytest.mark.parametrize(("kept", "settings"), [(8.0, 3), (3.0, 0)])
def test_what_counts_is_half_of_the_loss_at_4_bits(study, lines, kept, settings):
    _, page = study
    changed = [
        {**line, "test": {**line["test"], "int4": line["test"]["as trained"] - 10 + kept * (line["arm"] == "s2sam")}}
        for line in lines
    ]
    runs = page.by_setting(changed)
    count, against = page.counts(runs, page.claims(runs))
    assert f"It holds in {settings} of 3 settings (dense{', held' * (settings > 0)}: " in count
    assert f"{10 - kept:.1f} lost at 4 bits instead of 10.0" in count
    assert "It does not hold" in against


def test_examples_hold(study):
    found = doctest.testmod(study[1])
    assert found.attempted
    assert not found.failed


def test_the_page_is_made_of_the_data(study):
    survives, page = study
    found = survives.measured()
    if len(found) < len(list(survives.cells())):
        assert not page.PAGE.exists()
        pytest.skip(f"{len(found)} of the plan's runs are measured so far")
    assert page.PAGE.read_text(encoding="utf-8") == page.rendered(found)
