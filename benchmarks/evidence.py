"""What S²-SAM does: runs the recipes `evidence-*`, in the order of what they decide, and writes what came of them.

python benchmarks/evidence.py --data-dir DIR        # goes on where it stopped
python benchmarks/evidence.py --page                # only the page, from results/ alone
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from flatsparse.lab.grid import key, outcomes, run_grid
from flatsparse.lab.recipes import load
from flatsparse.lab.reproduce.making import meets
from flatsparse.lab.run import Run
from flatsparse.storage import read_json, read_json_lines, sealed, write_whole

ROOT = Path(__file__).parent.parent
DATA = {name: ROOT / "results" / f"evidence{name}.jsonl" for name in ("", "-digits")}
# What is run, in order: recipe, pattern of its cells, sharpnesses (all if none is named).
ORDER: tuple[tuple[str, str | None, tuple[str, ...]], ...] = (
    ("rho", None, ("s2sam",)),
    ("main", None, ()),
    ("rho", None, ("random", "sam")),
    ("directions", None, ("none", "s2sam", "random", "sam")),
    ("noise", None, ()),
    ("rho", None, ("momentum",)),
    ("directions", None, ("momentum",)),
    ("masking", None, ()),
    ("decay", None, ()),
    ("fixed", None, ()),
    ("ends", None, ()),
    ("underfit", None, ()),
)
DIGITS: tuple[tuple[str, str | None, tuple[str, ...]], ...] = (("digits-rho", None, ()), ("digits", None, ()))
TOLD = ("test_accuracy", "test_loss", "train_accuracy", "train_loss", "validation_accuracy", "validation_loss")


def planned(part: tuple[str, str | None, tuple[str, ...]], data_dir: Path | None) -> dict[Run, list[list[str]]]:
    """The runs of a part, seeds outermost so that what is compared is there at the same time, and the cells each stands for."""
    name, pattern, sharpnesses = part
    recipe = load(f"evidence-{name}")
    first, count = recipe.first_seed, recipe.seeds["laptop"]
    found: dict[Run, list[list[str]]] = {}
    for seed in range(first, first + count):
        for cell in recipe.cells("laptop"):
            if meets(cell.name, pattern) and (not sharpnesses or cell.run.sharpness in sharpnesses):
                run = dataclasses.replace(cell.run, seed=seed, data_dir=data_dir).resolved()
                found.setdefault(run, []).append([name, cell.row, cell.column, cell.label])
    return found


def line(run: Run, cells: list[list[str]], folder: Path) -> dict[str, Any]:
    """What is kept of a finished run."""
    result, about = read_json(folder / "result.json"), read_json(folder / "config.json")
    plain = Run(data_dir=run.data_dir).resolved().as_dict()
    differs = {name: value for name, value in run.as_dict().items() if value != plain[name] and name != "data_dir"}
    return {
        "key": key(run),
        "cells": cells,
        "settings": differs,
        "seed": run.seed,
        "rho": run.rho if run.sharpness != "none" else 0.0,
        **{name: rounded(result[name]) for name in TOLD},
        "ball": rounded(result["ball"]["increase"]),
        "steps": result["steps"],
        "gradients": result["gradient_evaluations"],
        "seconds": rounded(result["seconds"]["train"]),
        "on": {**about["versions"], **about["machine"]},
    }


def rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def gathered(store: Path, data_dir: Path | None) -> None:
    """Write a line for every finished run into ``results/``, in the order of the parts; lines of other stores stay."""
    for name, parts in (("", ORDER), ("-digits", DIGITS)):
        cells: dict[Run, list[list[str]]] = {}
        for part in parts:
            for run, places in planned(part, data_dir).items():
                cells.setdefault(run, []).extend(place for place in places if place not in cells.get(run, []))
        kept = {r["key"]: r for r in read_json_lines(DATA[name])} if DATA[name].is_file() else {}
        for outcome in outcomes(list(cells), store):
            if outcome.result is not None:
                kept[key(outcome.run)] = line(outcome.run, cells[outcome.run], outcome.folder)
        write_whole(DATA[name], "".join(json.dumps(sealed(record)) + "\n" for record in kept.values()).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=ROOT / "runs" / "evidence", help="where the runs are kept")
    parser.add_argument("--data-dir", type=Path, help="where cifar-10-batches-py lies (or set FLATSPARSE_DATA)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once; two are as many as the page was made with")
    parser.add_argument("--parts", nargs="*", help="of which recipes, e.g. main noise; by default all, in their order")
    chosen = parser.parse_args()
    for part in [part for part in (*DIGITS, *ORDER) if chosen.parts is None or part[0] in chosen.parts]:
        run_grid(list(planned(part, chosen.data_dir)), chosen.store, jobs=chosen.jobs, title=f"evidence-{part[0]}")
    gathered(chosen.store, chosen.data_dir)


if __name__ == "__main__":
    main()
