"""The table of docs/language-models.md is made of the lines in results/, which are complete and follow from what was tuned."""

import pytest

from flatsparse.common.json_files import read_json_lines
from flatsparse.experiments.stats import mean_interval, paired_difference
from tests.benchmark_scripts import importable

with importable():
    import language_model as study


@pytest.fixture(scope="module")
def lines():
    return read_json_lines(study.DATA)


def test_the_table_is_made_of_the_data(lines):
    table = study.table(lines)
    text = study.PAGE.read_text(encoding="utf-8")
    assert table in text
    assert study.page() == text


def test_every_arm_has_every_seed_at_what_was_chosen(lines):
    for cell in study.cells():
        tuned = {
            (line["arm"], line["lr"], line["rho"]): line["perplexity"]
            for line in lines
            if line["kind"] == "tuning" and cell.items() <= line.items()
        }
        rates = {rate: tuned[study.NONE, rate, 0.0] for rate in study.RATES}
        rate = min(rates, key=rates.get)
        radii = {rho: tuned[study.SHARP, rate, rho] for rho in study.RADII}
        rho = min(radii, key=radii.get)
        assert len(tuned) == len(rates) + len(radii)
        runs = [line for line in lines if line["kind"] == "run" and cell.items() <= line.items()]
        arms = {study.NONE: 0.0, study.SHARP: rho, study.UNMASKED: 0.0}
        assert sorted((r["arm"], r["lr"], r["rho"], r["seed"]) for r in runs) == sorted(
            (arm, rate, own, seed) for arm, own in arms.items() for seed in study.SEEDS
        )
        assert study.TUNING_SEED not in study.SEEDS


def test_what_the_page_says_in_words_holds(lines):
    kept, gains = study.Lines(lines), {}
    for cell in study.cells():
        runs = {arm: kept.of(kind="run", arm=arm, **cell) for arm in study.ARMS}
        values = {arm: [run["perplexity"] for run in own] for arm, own in runs.items()}
        assert paired_difference(values[study.SHARP], values[study.NONE]).high >= 0  # S²-SAM does not help
        gains[tuple(cell.values())] = (
            mean_interval(values[study.NONE]).mean - mean_interval(values[study.UNMASKED]).mean
        )
        if cell["setting"] == "50 %":
            assert {run["lr"] for run in runs[study.NONE]} == {min(study.RATES)}
    radii = [study.chosen(kept, cell, "rho", arm=study.SHARP) for cell in study.cells()]
    assert radii.count(min(study.RADII)) > len(radii) / 2
    for arm in study.ARMS:
        magnitude, wanda = (kept.of(kind="run", arm=arm, setting="80 %", score=score) for score in study.SCORES)
        assert min(run["perplexity"] for run in wanda) > max(run["perplexity"] for run in magnitude)
    assert {setting for setting, _ in sorted(gains, key=gains.get)[-2:]} == {"80 %"}
    assert {line["zeros_lost"] > 0.999 for line in kept.of(kind="run", arm=study.UNMASKED)} == {True}


def test_zeros_stay_with_masks_and_go_without(lines):
    for line in lines:
        if line["kind"] in ("tuning", "run"):
            assert (line["zeros_lost"] > 0.5) if line["arm"] == study.UNMASKED else line["zeros_lost"] == 0


def test_the_dense_model_says_how_it_was_trained(lines):
    (dense,) = (line for line in lines if line["kind"] == "dense")
    assert study.DENSE.items() <= dense.items()
    windows = {name: count / (study.CONTEXT - 1) for name, count in dense["tokens"].items()}
    assert all(count == int(count) for count in windows.values())
