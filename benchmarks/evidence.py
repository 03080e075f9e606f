"""What S²-SAM does: runs the recipes `evidence-*`, in the order of what they decide, and writes what came of them.

python benchmarks/evidence.py --data-dir DIR        # goes on where it stopped
python benchmarks/evidence.py --page                # only the page, from results/ alone
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from flatsparse.lab.build import build
from flatsparse.lab.data import batches
from flatsparse.lab.grid import key, outcomes, run_grid
from flatsparse.lab.recipes import evidence, load
from flatsparse.lab.reporting import LABELS
from flatsparse.lab.reproduce.making import meets
from flatsparse.lab.run import Run
from flatsparse.lab.statistics import holm, p_value, paired_difference
from flatsparse.lab.training import _step
from flatsparse.storage import read_json, read_json_lines, sealed, write_whole

ROOT = Path(__file__).parent.parent
PAGE, TEMPLATE = ROOT / "docs" / "evidence.md", Path(__file__).with_suffix(".md")
NOT_YET = "Not yet measured."
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


def shares(data_dir: Path | None, seeds: Iterable[int] = range(3)) -> None:
    """Measure where unmasked perturbations lie, and add it to ``results/``."""
    kept = read_json_lines(DATA[""])
    unmasked = load("evidence-masking").cells("laptop")[-1].run
    for seed in seeds:
        record = share_record(dataclasses.replace(unmasked, seed=seed, data_dir=data_dir).resolved())
        kept = [r for r in kept if r["key"] != record["key"]] + [record]
    write(DATA[""], kept)


def write(file: Path, records: Iterable[dict[str, Any]]) -> None:
    write_whole(file, "".join(json.dumps(sealed(record)) + "\n" for record in records).encode())


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
        write(DATA[name], kept.values())


def share_record(run: Run) -> dict[str, Any]:
    """How much of an unmasked perturbation's squared length lies on live weights, step by step, over a run."""
    parts, found = build(run), []
    names = {p: name for name, p in parts.model.named_parameters()}

    def watched(optimizer: Any, gradients: dict[Any, torch.Tensor]) -> dict[Any, torch.Tensor]:
        masks = parts.training.masks
        live = sum(float((g * masks.get(names[p], 1)).square().sum()) for p, g in gradients.items())
        found.append(live / sum(float(g.square().sum()) for g in gradients.values()))
        return gradients

    parts.optimizer.direction = watched  # type: ignore[attr-defined]  # S2SAM takes any function
    for epoch in range(run.epochs):
        parts.net.train()
        for batch in batches(parts.splits.train, parts.splits, run.batch_size, seed=run.seed, epoch=epoch):
            _step(parts.run, parts, *batch, share=1.0)
            parts.optimizer.zero_grad()
            parts.schedule.step()
    half = len(found) // 2
    shares = {"first_half": statistics.fmean(found[:half]), "second_half": statistics.fmean(found[half:])}
    return {"key": f"share-{key(run)}", "cells": [["share", "RigL", "90%", "all"]], "seed": run.seed, **shares}


Cells = dict[tuple[str, str, str], dict[str, dict[int, dict[str, Any]]]]


def by_cell(records: list[dict[str, Any]]) -> Cells:
    """Records by recipe, row and column, then by what differs there, then by seed."""
    found: Cells = {}
    for record in records:
        for recipe, row, column, label in record["cells"]:
            found.setdefault((recipe, row, column), {}).setdefault(label, {})[record["seed"]] = record
    return found


def gaps(place: dict[str, dict[int, dict[str, Any]]], label: str, base: str = "none") -> list[float]:
    """Differences of test accuracy between two of a place, of the seeds that both have."""
    ours, theirs = place.get(label, {}), place.get(base, {})
    return [ours[seed]["test_accuracy"] - theirs[seed]["test_accuracy"] for seed in sorted(ours) if seed in theirs]


def told(differences: list[float]) -> str:
    if len(differences) < 2:
        return f"{differences[0]:+.1f} (one pair)" if differences else "–"
    d = paired_difference(differences, [0.0] * len(differences))
    text = f"{d.mean:+.1f} [{d.low:+.1f}, {d.high:+.1f}]"
    return text if d.low <= 0 <= d.high else f"**{text}**"


def mean(runs: dict[int, dict[str, Any]], name: str, places: int = 1) -> str:
    return f"{statistics.fmean(r[name] for r in runs.values()):.{places}f}"


def spread(runs: dict[int, dict[str, Any]]) -> str:
    values = [r["test_accuracy"] for r in runs.values()]
    return mean(runs, "test_accuracy") + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def compared(cells: Cells, recipe: str) -> str:
    """A recipe's table: everything next to the plain run of its place; p values are Holm's over the table."""
    places = {where: place for where, place in cells.items() if where[0] == recipe and "none" in place}
    claims = [(where, label) for where, place in places.items() for label in place if label != "none"]
    claims = [claim for claim in claims if len(gaps(places[claim[0]], claim[1])) > 1]
    p = dict(zip(claims, holm([p_value(gaps(places[where], label)) for where, label in claims]), strict=True))
    rows = []
    for where, place in places.items():
        for label in sorted(place, key=lambda name: name != "none"):
            runs = place[label]
            rho = next(iter(runs.values()))["rho"]
            rows.append(
                [
                    ", ".join(where[1:]),
                    LABELS.get(label, label.replace("s2sam", "S²-SAM")),
                    f"{rho:g}" if rho else "",
                    str(len(runs)),
                    spread(runs),
                    mean(runs, "train_accuracy"),
                    "" if label == "none" else told(gaps(place, label)),
                    f"{p[where, label]:.2f}" if (where, label) in p else "",
                    mean(runs, "ball", 2),
                ]
            )
    return (
        table(["cell", "", "ρ", "n", "test %", "train %", "to plain, points", "p", "ball"], rows) if rows else NOT_YET
    )


def over_cells(cells: Cells, recipe: str, label: str = "s2sam") -> str:
    """The mean difference over a recipe's places, with an interval over the seeds that all of them have."""
    places = [place for where, place in cells.items() if where[0] == recipe]
    seeds = (
        set.intersection(*(set(place.get(name, {})) for place in places for name in ("none", label)))
        if places
        else set()
    )
    if len(seeds) < 2:
        return NOT_YET
    differences = [
        statistics.fmean(place[label][s]["test_accuracy"] - place["none"][s]["test_accuracy"] for place in places)
        for s in sorted(seeds)
    ]
    return f"{told(differences)}, n = {len(seeds)}"


def over_rho(cells: Cells, recipes: tuple[str, ...], column: str, value: str) -> str:
    """Means by sharpness and ρ, with their n."""
    there = [
        (float(where[1].removeprefix("ρ ")), place)
        for where, place in cells.items()
        if where[0] in recipes and where[2] == column
    ]
    there = sorted(there, key=lambda found: found[0])
    names = list(dict.fromkeys(name for _, place in there for name in place if name != "none"))
    rows = [
        [
            LABELS[name],
            *(f"{mean(place[name], value)} ({len(place[name])})" if name in place else "–" for _, place in there),
        ]
        for name in names
    ]
    return table(["", *(f"ρ = {rho:g}" for rho, _ in there)], rows) if rows else NOT_YET


def chosen(cells: Cells, recipe: str, column: str, name: str) -> float | None:
    """The ρ with the highest mean validation accuracy, the smallest of equals; None before anything is measured."""
    means = {
        float(where[1].removeprefix("ρ ")): statistics.fmean(r["validation_accuracy"] for r in place[name].values())
        for where, place in cells.items()
        if where[0] == recipe and where[2] == column and name in place
    }
    return min(means, key=lambda rho: (-means[rho], rho)) if means else None


def on_digits(cells: Cells) -> str:
    """Methods by labels: plain, and what each sharpness adds to it."""
    rows = []
    for (recipe, row, column), place in cells.items():
        if recipe == "digits" and "none" in place:
            added = [told(gaps(place, name)) for name in ("s2sam", "sam", "random")]
            rows.append(
                [
                    row,
                    column,
                    str(len(place["none"])),
                    spread(place["none"]),
                    mean(place["none"], "train_accuracy"),
                    *added,
                ]
            )
    return (
        table(["method", "labels", "n", "plain, test %", "train %", "S²-SAM", "SAM", "random"], rows)
        if rows
        else NOT_YET
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def share_told(records: list[dict[str, Any]]) -> str:
    found = [r for r in records if "first_half" in r]
    if not found:
        return "How much of that perturbation lies on live weights: not yet measured."
    first, second = (statistics.fmean(r[name] for r in found) for name in ("first_half", "second_half"))
    return (
        f"Of the squared length of that perturbation {first:.0%} lies on live weights, biases and norms in the first half of the"
        f" run, {second:.0%} in the second (n = {len(found)}). Its live part is so much shorter than ρ: by a factor of"
        f" {first**0.5:.2f} and {second**0.5:.2f}."
    )


def rendered() -> str:
    """The page, with every number from ``results/``."""
    records = [record for file in DATA.values() if file.is_file() for record in read_json_lines(file)]
    cells = by_cell(records)
    words = {
        **{
            name.upper(): compared(cells, name)
            for name in ("main", "directions", "noise", "masking", "decay", "fixed", "underfit")
        },
        "OVER_CELLS": over_cells(cells, "main"),
        "RHO": over_rho(cells, ("rho",), "RigL 90%", "validation_accuracy"),
        "ENDS": over_rho(cells, ("rho", "ends"), "RigL 90%", "test_accuracy"),
        "ENDS_TRAIN": over_rho(cells, ("rho", "ends"), "RigL 90%", "train_accuracy"),
        **{
            f"DIGITS_RHO_{noisy:g}": over_rho(
                cells, ("digits-rho",), f"RigL, {noisy:.0%} wrong labels", "validation_accuracy"
            )
            for noisy in evidence.DIGITS_RHO
        },
        "DIGITS": on_digits(cells),
        "SHARE": share_told(records),
        "RUNS": str(len(records)),
        "HOURS": f"{sum(r['seconds'] for r in records) / 3600:.1f}",
        "TORCH": ", ".join(sorted({r["on"]["torch"] for r in records if "on" in r})),
    }
    page = TEMPLATE.read_text(encoding="utf-8")
    for name, said in words.items():
        page = page.replace(f"«{name}»", said)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=ROOT / "runs" / "evidence", help="where the runs are kept")
    parser.add_argument("--data-dir", type=Path, help="where cifar-10-batches-py lies (or set FLATSPARSE_DATA)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once; two are as many as the page was made with")
    parser.add_argument("--parts", nargs="*", help="of which recipes, e.g. main noise; by default all, in their order")
    parser.add_argument("--gather", action="store_true", help="run nothing, take up what is finished")
    parser.add_argument("--page", action="store_true", help="only make the page, from results/ alone")
    args = parser.parse_args()
    if not args.page:
        for part in () if args.gather else [p for p in (*DIGITS, *ORDER) if args.parts is None or p[0] in args.parts]:
            run_grid(list(planned(part, args.data_dir)), args.store, jobs=args.jobs, title=f"evidence-{part[0]}")
        gathered(args.store, args.data_dir)
        if not args.gather and (args.parts is None or "share" in args.parts):
            shares(args.data_dir)
    PAGE.write_text(rendered(), encoding="utf-8")


if __name__ == "__main__":
    main()
