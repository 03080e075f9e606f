"""Twelve methods and ρ: the page is made of its data, its runs are those of the recipes, and ρ is what validation chose."""

import pytest

from flatsparse.experiments.grid.store import key
from flatsparse.experiments.recipes import evidence, load
from flatsparse.experiments.run.config import RunConfig, Runtime, change
from flatsparse.experiments.run.resolve import resolve
from tests.benchmark_scripts import importable

with importable():
    import evidence_methods as runner
    import evidence_methods_page as study

RECORDS = study.read()


def test_the_page_is_made_of_the_data():
    page = study.rendered()
    assert study.PAGE.read_text(encoding="utf-8") == page
    assert "«" not in page  # nothing is left to fill in
    assert study.NOT_YET not in page
    assert "–" not in page[: page.index("## How to read it")]  # of what has no runs


def test_the_page_of_measurements_says_what_the_data_says():
    cells = study.by_cell(RECORDS)
    page = (study.ROOT / "docs" / "measurements.md").read_text(encoding="utf-8")
    noisy, right = evidence.labels(evidence.NOISE), evidence.labels(0)
    averages = [("s2sam", "none"), ("random", "none"), ("sam", "s2sam")]
    for found in (
        *(study.averaged(cells, "digits", noisy, *pair) for pair in averages),
        *(study.gaps(cells["noise", "RigL 90%", noisy], *pair) for pair in averages),
        study.averaged(cells, "digits", right, "s2sam", "none"),
        study.averaged(cells, "main", right, "s2sam", "none"),
        study.gaps(cells["short", "static 95%", right], "s2sam"),
    ):
        assert study.formatted(found).strip("*") in page


def test_every_run_is_of_the_cells_it_stands_for():
    shares = {"share": "masking", "share-digits": "digits-masking"}  # whose runs those of the shares are
    recipes = {shares.get(name, name) for record in RECORDS for name, *_ in record["cells"]}
    wanted = {
        (name, cell.row, cell.column, cell.label): cell.run
        for name in recipes
        for cell in load(f"evidence-{name}").cells("laptop")
    }
    for record in RECORDS:
        of_machine = {"precision": record["settings"].get("precision", Runtime.precision)}
        for name, row, column, label in record["cells"]:
            run = wanted[shares.get(name, name), row, column, label]
            run = change(run, seed=record["seed"], **of_machine)
            assert record["key"] == ("share-" if name in shares else "") + key(run)


def test_the_settings_of_a_line_say_all_that_its_run_was():
    """Also what a method did by itself when they were run, and does no longer."""
    for record in RECORDS:
        settings = {n: tuple(v) if isinstance(v, list) else v for n, v in record["settings"].items()}
        assert record["key"].removeprefix("share-") == key(RunConfig.of(**{**settings, "seed": record["seed"]}))


def test_a_sweep_has_every_rho_with_the_same_seeds():
    cells = study.by_cell(RECORDS)
    for data, (sweep, *_) in study.SWEEPS.items():
        for noisy, rhos in evidence.RHO[data].items():
            places = study.by_rho(cells, (sweep,), evidence.labels(noisy))
            assert len(places) == 5
            assert len({tuple(sorted(place[name])) for place in places.values() for name in ("none", *rhos)}) == 1


def test_no_rho_was_chosen_on_a_seed_that_is_compared():
    cells = study.by_cell(RECORDS)
    seeds = {}
    for (recipe, *_), place in cells.items():
        seeds.setdefault(recipe in ("rho", "digits-rho", "digits-ends"), set()).update(*place.values())
    assert not seeds.get(True, set()) & seeds.get(False, set())


def test_rho_is_what_validation_chose():
    cells = study.by_cell(RECORDS)
    for data, (sweep, *_) in study.SWEEPS.items():
        for noisy, rhos in evidence.RHO[data].items():
            for name, rho in rhos.items():
                assert study.chosen(cells, sweep, evidence.labels(noisy), name) == rho


def record(label, seed, test, row="RigL"):
    cells = [["main", row, "90%", label]]
    return {"cells": cells, "seed": seed, "test_accuracy": test, "train_accuracy": 99.0, "ball": 0.5, "rho": 0.1}


def test_differences_are_paired_by_seed_and_a_seed_that_lacks_a_run_is_left_out():
    plain, ours = [(0, 30.0), (1, 31.0), (2, 32.0)], [(1, 32.0), (2, 33.1), (7, 38.0)]
    runs = [record("none", *found) for found in plain] + [record("s2sam", *found) for found in ours]
    cells = study.by_cell(runs)
    assert study.gaps(cells["main", "RigL", "90%"], "s2sam") == pytest.approx([1.0, 1.1])
    assert "| RigL, 90% | S²-SAM | 0.1 | 2 |" in study.compared(cells, "main")
    assert "**+1.1 [+0.4, +1.7]**" in study.compared(cells, "main")


def test_differences_all_alike_have_no_interval():
    runs = [record(name, seed, value) for seed in (0, 1) for name, value in (("none", 30.0), ("s2sam", 31.0))]
    assert "+1.0 (all alike)" in study.compared(study.by_cell(runs), "main")


def test_an_average_over_cells_is_taken_seed_by_seed_of_seeds_that_all_have():
    gains = {("RigL", 0): 1.0, ("RigL", 1): 2.0, ("SET", 0): 3.0, ("SET", 1): 4.0, ("SET", 2): 99.0}
    runs = [record("none", seed, 50.0, row=row) for row, seed in gains]
    runs += [record("s2sam", seed, 50.0 + gain, row=row) for (row, seed), gain in gains.items()]
    assert study.averaged(study.by_cell(runs), "main", "90%", "s2sam", "none") == [2.0, 3.0]
    assert study.averaged(study.by_cell(runs), "main", "98%", "s2sam", "none") == []


@pytest.mark.parametrize(("found", "best"), [([1.0, 3.0, 2.0], 0.1), ([3.0, 3.0, 2.0], 0.03), ([1.0, 2.0, 4.0], 0.3)])
def test_the_best_validation_accuracy_chooses_and_the_smaller_of_equals(found, best):
    runs = [
        {"cells": [["rho", f"ρ {rho:g}", "RigL 90%", "s2sam"]], "seed": seed, "validation_accuracy": value + wobble}
        for rho, value in zip((0.03, 0.1, 0.3), found, strict=True)
        for seed, wobble in ((1000, 0.5), (1001, -0.5))
    ]
    assert study.chosen(study.by_cell(runs), "rho", "RigL 90%", "s2sam") == best
    assert study.chosen(study.by_cell(runs), "rho", "RigL 90%", "sam") is None


def test_the_plan_has_every_run_once_with_all_its_cells_and_seeds_outermost():
    plan = runner.planned(("digits-decay", "decay 0.0005", ("none", "s2sam")), None)
    assert [run.seed for run in plan] == sorted(run.seed for run in plan)
    assert len(plan) == 2 * 2 * 10  # labels, sharpnesses, seeds
    shared = runner.planned(("rho", None, ("none",)), None)
    assert [len(cells) for cells in shared.values()] == [len(evidence.RHOS)] * 2 * 2  # labels, seeds


def test_shares_of_a_perturbation_are_of_live_weights():
    small = RunConfig.of(
        train_size=60, validation_size=20, batch_size=20, epochs=2, sharpness="s2sam", mask_perturbation=False
    )
    unmasked = runner.share_record(resolve(change(small, sparsity=0.95)))
    assert 0 < unmasked["first_half"] < 0.9
    assert runner.share_record(resolve(change(small, method="dense")))["second_half"] == pytest.approx(1)
    masked = change(small, sparsity=0.95, mask_perturbation=True)
    assert runner.share_record(resolve(masked))["first_half"] == pytest.approx(1)
