"""The tables of recipes that were reproduced: they are made of the lines in results/, whose runs are those of the recipes."""

import pytest

from flatsparse.experiments.grid.store import key
from flatsparse.experiments.recipes import load
from flatsparse.experiments.run.config import RunConfig, Runtime, change
from flatsparse.experiments.run.resolve import resolve
from tests.benchmark_scripts import importable

with importable():
    import reproduced as study

RECORDS = study.read()


@pytest.mark.parametrize("page", study.TABLES, ids=lambda page: page.name)
def test_a_table_is_made_of_the_data(page):
    table = study.TABLES[page](RECORDS)
    text = page.read_text(encoding="utf-8")
    assert table in text
    assert study.with_table(text, table) == text


def test_every_run_is_of_its_recipe_and_its_settings_say_all_that_it_was():
    for record in RECORDS:
        (cell,) = (
            cell
            for cell in load(record["recipe"]).cells(study.SCALE)
            if (cell.row, cell.column, cell.label) == (record["row"], record["column"], record["sharpness"])
        )
        of_machine = {"precision": record["settings"].get("precision", Runtime.precision)}
        assert record["key"] == key(resolve(change(cell.run, seed=record["seed"], **of_machine)))
        settings = {name: tuple(v) if isinstance(v, list) else v for name, v in record["settings"].items()}
        assert record["key"] == key(RunConfig.of(**{**settings, "seed": record["seed"]}))


def test_compared_runs_have_the_same_seeds():
    assert RECORDS
    for recipe in study.RECIPES:
        seeds: dict[tuple[str, str, str], set[int]] = {}
        for record in RECORDS:
            if record["recipe"] == recipe:
                place = record["row"], record["column"], record["sharpness"]
                seeds.setdefault(place, set()).add(record["seed"])
        assert {frozenset(own) for own in seeds.values() if len(own) > 1} == {frozenset({0, 1, 2})}
