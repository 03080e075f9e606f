"""Recipes that were reproduced on real data: a line for each run in results/, and the tables of docs/ that are made of them.

flatsparse reproduce wmt14 --scale laptop --seeds 3 --data-dir DIR --out STORE
flatsparse reproduce imagenette --scale laptop --data-dir DIR --out STORE
python benchmarks/reproduced.py STORE     # reads the finished runs of a store, and writes results/ and the tables
python benchmarks/reproduced.py           # writes the tables anew
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import judged

from flatsparse.common.files import write_atomic
from flatsparse.common.json_files import read_json, read_json_lines, with_checksum
from flatsparse.experiments.data.corruptions import CORRUPTIONS, MAIN
from flatsparse.experiments.grid.store import key, outcomes
from flatsparse.experiments.labels import label as label_of
from flatsparse.experiments.recipes import load
from flatsparse.experiments.recipes.recipe import Scale
from flatsparse.experiments.run.config import RunConfig, as_json, change
from flatsparse.experiments.run.resolve import resolve
from flatsparse.experiments.stats import paired_difference

ROOT = Path(__file__).parent.parent
DATA = ROOT / "results" / "reproduced.jsonl"
SCALE: Scale = "laptop"
RECIPES = ("wmt14", "imagenette")
KEPT = (
    "scores",
    "train_scores",
    "validation_scores",
    "signature",
    "test_accuracy",
    "train_accuracy",
    "test_loss",
    "train_loss",
)

Record = dict[str, Any]


def gathered(store: Path) -> list[Record]:
    """Return a line for each run of the recipes that is finished in a store, or else has a line already, in their order."""
    there = {_place(record): record for record in read()}
    for name in RECIPES:
        recipe = load(name)
        for cell in recipe.cells(SCALE):
            for seed in range(recipe.seeds[SCALE]):
                (outcome,) = outcomes([change(cell.run, seed=seed)], store)
                if outcome.result is not None:
                    where = {
                        "recipe": name,
                        "row": cell.row,
                        "column": cell.column,
                        "sharpness": cell.label,
                        "seed": seed,
                    }
                    line = _line(outcome.run, outcome.folder) | _corrupted(store, name, outcome.folder)
                    there[_place(where)] = {"key": key(outcome.run), **where, **line}
    return [there[place] for place in sorted(there)]


def _place(record: Record) -> tuple[Any, ...]:
    return tuple(record[name] for name in ("recipe", "column", "row", "sharpness", "seed"))


def _line(run: RunConfig, folder: Path) -> Record:
    """Return the settings that differ from the usual, the results, and what a run ran on."""
    result, about = read_json(folder / "result.json"), read_json(folder / "config.json")
    plain = as_json(resolve(RunConfig()))
    return {
        "settings": {name: value for name, value in as_json(resolve(run)).items() if value != plain[name]},
        **{name: result[name] for name in KEPT if result.get(name) is not None},
        "flops": result["flops"],
        "seconds": result["seconds"]["train"],
        "on": {**about["versions"], **about["machine"]},
    }


def _corrupted(store: Path, recipe: str, folder: Path) -> Record:
    """Return the accuracies on corrupted images that a recipe measured: on clean ones, and by corruption over severities."""
    file = store / f"{recipe}-{SCALE}" / f"{folder.name}.json"
    if not file.is_file():
        return {}
    table = read_json(file)
    by = {name: statistics.fmean(values) for name, values in table["by"].items()}
    return {
        "corrupted": {"clean": table["clean"], "mean_of_main": statistics.fmean(by[name] for name in MAIN), "by": by}
    }


def read() -> list[Record]:
    """Return the lines of results/."""
    return list(read_json_lines(DATA)) if DATA.is_file() else []


def values(records: Sequence[Record], sharpness: str, path: str) -> dict[int, float]:
    """Return the value of each seed under a sharpness, at a path of names in its line."""
    found: dict[int, float] = {}
    for record in records:
        if record["sharpness"] == sharpness:
            value: Any = record
            for name in path.split("."):
                value = value[name]
            found[record["seed"]] = value
    return found


def spread(found: Mapping[int, float]) -> str:
    """Return the mean and the standard deviation over seeds as text."""
    return f"{statistics.fmean(found.values()):.1f} ± {statistics.stdev(found.values()):.1f}"


def difference(records: Sequence[Record], path: str) -> str:
    """Return the mean gain of S²-SAM, paired by seed, with its 95 % interval, as text."""
    ours, theirs = (values(records, sharpness, path) for sharpness in ("s2sam", "none"))
    seeds = sorted(ours.keys() & theirs.keys())
    gain = paired_difference([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])
    return judged.signed(gain)


def translation_table(records: Sequence[Record]) -> str:
    """Return the table of the runs on Multi30k: BLEU on test, validation and training sentences."""
    mine = [r for r in records if r["recipe"] == "wmt14"]
    lines = ["| | sharpness | BLEU, test | gain | validation | training | minutes |", "| --- " * 7 + "|"]
    for row, column in dict.fromkeys((r["row"], r["column"]) for r in mine):
        place = [r for r in mine if (r["row"], r["column"]) == (row, column)]
        for sharpness in ("none", "s2sam"):
            if len(values(place, sharpness, "seed")) < 2:
                continue  # of one seed nothing can be said
            test, *others = (
                spread(values(place, sharpness, f"{part}.BLEU"))
                for part in ("scores", "validation_scores", "train_scores")
            )
            gain = difference(place, "scores.BLEU") if sharpness != "none" else ""
            minutes = statistics.median(values(place, sharpness, "seconds").values()) / 60
            name = row if column == "0%" else f"{row} {column}"
            lines.append(f"| {name} | {label_of(sharpness)} | {test} | {gain} | {' | '.join(others)} | {minutes:.0f} |")
    return "\n".join(lines)


def robustness_table(records: Sequence[Record]) -> str:
    """Return the table of the runs on Imagenette: accuracy on clean and on corrupted test images."""
    mine = [r for r in records if r["recipe"] == "imagenette"]
    rows = {
        "all test images": "test_accuracy",
        "1,000 of them": "corrupted.clean",
        "mean of the fifteen": "corrupted.mean_of_main",
        **{f"`{name}`": f"corrupted.by.{name}" for name in CORRUPTIONS},
    }
    lines = ["| test accuracy, % | plain | S²-SAM | gain |", "| --- | --- | --- | --- |"]
    for name, path in rows.items():
        plain, sharp = (spread(values(mine, sharpness, path)) for sharpness in ("none", "s2sam"))
        lines.append(f"| {name} | {plain} | {sharp} | {difference(mine, path)} |")
    return "\n".join(lines)


TABLES: dict[Path, Callable[[Sequence[Record]], str]] = {
    ROOT / "docs" / "translation.md": translation_table,
    ROOT / "docs" / "robustness.md": robustness_table,
}


def with_table(page: str, table: str, name: str = "") -> str:
    """Return a page with the table between two marks; they have names where there are several."""
    begin, end = f"<!-- measured{name and ' '}{name} -->\n", "<!-- end -->"
    return re.sub(
        f"(?<={re.escape(begin)}).*?(?={re.escape(end)})", lambda _: table + "\n", page, count=1, flags=re.DOTALL
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", nargs="?", type=Path, help="the --out of flatsparse reproduce")
    store = parser.parse_args().store
    if store is not None:
        text = "".join(json.dumps(with_checksum(record)) + "\n" for record in gathered(store))
        write_atomic(DATA, text.encode())
    for page, table in TABLES.items():
        page.write_text(with_table(page.read_text(encoding="utf-8"), table(read())), encoding="utf-8")


if __name__ == "__main__":
    main()
