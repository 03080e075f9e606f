"""Twelve methods and ρ: runs the recipes `evidence-*`, in the order of what they decide, and writes their results.

    python benchmarks/evidence_methods.py --data-dir DIR        # continues where results/ stop
    python benchmarks/evidence_methods.py --data-dir DIR --again --store runs/again
    python benchmarks/evidence_methods.py --page                # only the page, from results/ alone

`make evidence` runs the first, and the other studies.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from evidence_methods_page import DATA, PAGE, ROOT, by_cell, read, rendered
from evidence_methods_pictures import PICTURES

from flatsparse.common.files import write_atomic
from flatsparse.common.json_files import read_json, read_json_lines, with_checksum
from flatsparse.experiments.data.sources import load as load_data
from flatsparse.experiments.data.splits import split
from flatsparse.experiments.grid.store import key, outcomes, run_grid
from flatsparse.experiments.landscape.measure import measure
from flatsparse.experiments.landscape.settings import Landscape
from flatsparse.experiments.recipes import load
from flatsparse.experiments.reproduce.select import matches
from flatsparse.experiments.run.build import build
from flatsparse.experiments.run.config import ResolvedRun, RunConfig, as_json, change
from flatsparse.experiments.run.environment import environment
from flatsparse.experiments.run.epoch import take_step
from flatsparse.experiments.run.load import load_run
from flatsparse.experiments.run.resolve import resolve

Part = tuple[str, str | None, tuple[str, ...]]
# By file of results: what is run, in order, as recipe, pattern of its cells, sharpnesses (all if none is named).
ORDER: dict[str, tuple[Part, ...]] = {
    "": (
        ("rho", None, ()),
        ("main", None, ()),
        ("noise", None, ()),
        ("masking", None, ()),
        ("decay", None, ()),
        ("fixed", None, ()),
        ("short", None, ()),
    ),
    "-digits": (
        ("digits-rho", None, ()),
        ("digits", r"^(static|SNIP|SET|RigL|MEST\(EM\)) ", ()),
        ("digits-main", None, ()),
        ("digits-masking", None, ()),
        ("digits-decay", None, ()),
        ("digits-ends", None, ()),
        ("digits", None, ()),
        ("digits-rounds", None, ()),
    ),
}
TOLD = ("test_accuracy", "test_loss", "train_accuracy", "train_loss", "validation_accuracy", "validation_loss")

# Whose surfaces and Hessians are measured, and what those with wrong labels have learned.
CURVED: dict[str, tuple[Part, ...]] = {
    "": (("main", "RigL 90%", ("none", "s2sam")), ("noise", None, ("none", "s2sam"))),
    "-digits": (("digits", "RigL", ()),),
}


def planned(part: Part, data_dir: Path | None) -> dict[RunConfig, list[list[str]]]:
    """The runs of a part, seeds outermost so that what is compared is there at the same time, and the cells each stands for."""
    name, pattern, sharpnesses = part
    recipe = load(f"evidence-{name}")
    first, count = recipe.first_seed, recipe.seeds["laptop"]
    found: dict[RunConfig, list[list[str]]] = {}
    for seed in range(first, first + count):
        for cell in recipe.cells("laptop"):
            if matches(cell.name, pattern) and (not sharpnesses or cell.run.sharpness in sharpnesses):
                run = resolve(change(cell.run, seed=seed, data_dir=data_dir))
                found.setdefault(run, []).append([name, cell.row, cell.column, cell.label])
    return found


def line(run: RunConfig, cells: list[list[str]], folder: Path) -> dict[str, Any]:
    """The record of a finished run."""
    result, about = read_json(folder / "result.json"), read_json(folder / "config.json")
    return {
        "key": key(run),
        "cells": cells,
        **told(run),
        "rho": run.rho if run.sharpness != "none" else 0.0,
        **{name: rounded(result[name]) for name in TOLD},
        "ball": rounded(result["ball"]["increase"]),
        "steps": result["steps"],
        "gradients": result["gradient_evaluations"],
        "seconds": rounded(result["seconds"]["train"]),
        "on": {**about["versions"], **about["machine"]},
    }


def told(run: RunConfig) -> dict[str, Any]:
    """The settings of a run that differ from the usual ones, and its seed."""
    plain = as_json(resolve(RunConfig.of(data_dir=run.dataset.data_dir)))
    differs = {name: value for name, value in as_json(run).items() if value != plain[name] and name != "data_dir"}
    return {"settings": differs, "seed": run.seed}


def shares(data_dir: Path | None, seeds: Iterable[int] = range(3)) -> None:
    """Measure where unmasked perturbations lie, and add it to ``results/``."""
    for name, file in DATA.items():
        kept = {r["key"]: r for r in read_json_lines(file)}
        unmasked = load(f"evidence{name}-masking").cells("laptop")[-1]
        for seed in seeds:
            run = resolve(change(unmasked.run, seed=seed, data_dir=data_dir))
            cells = [[f"share{name}", unmasked.row, unmasked.column, unmasked.label]]
            kept[f"share-{key(run)}"] = {"key": f"share-{key(run)}", "cells": cells, **told(run), **share_record(run)}
            write(file, kept.values())


def landscapes(store: Path, data_dir: Path | None, jobs: int, seeds: Sequence[int] = range(3)) -> None:
    """Measure roughness and the Hessian's largest eigenvalue, over active weights, of some runs, and add them to ``results/``."""
    for name, parts in CURVED.items():
        runs = [run for part in parts for run in planned(part, data_dir) if run.seed in seeds]
        done = {outcome.folder: key(outcome.run) for outcome in outcomes(runs, store) if outcome.result is not None}
        if not done:  # their lines are there, but not the runs
            continue
        sizes = {"points": 11, "images": 500, "pairs": 3, "hessian_images": 50}
        settings = Landscape(tuple(done), jobs=jobs, data_dir=data_dir, **sizes)
        found = measure(settings, store / f"landscape{name}", resume=True)
        kept = {r["key"]: r for r in read_json_lines(DATA[name])}
        for stands, record in zip(done.values(), found, strict=True):
            largest = record["hessian"]["live"]["largest"]
            kept[stands] |= {"ra": rounded(record["ra"]["value"]), "largest": rounded(largest)}
        write(DATA[name], kept.values())


@torch.no_grad()
def learned(store: Path, data_dir: Path | None) -> None:
    """Count what the nets answer on training images with right and with wrong labels, and add it to ``results/``."""
    for name, parts in CURVED.items():
        runs = [run for part in parts for run in planned((*part[:2], ()), data_dir) if run.label_noise]
        kept = {r["key"]: r for r in read_json_lines(DATA[name])}
        for outcome in outcomes(runs, store):
            if outcome.result is not None:
                kept[key(outcome.run)] |= answers(outcome.folder, data_dir)
        write(DATA[name], kept.values())


def answers(folder: Path, data_dir: Path | None) -> dict[str, float | None]:
    """In percent: right labels that are given, wrong labels that are given, and true classes given where labels are wrong."""
    done = load_run(folder, data_dir=data_dir)
    run = done.run
    sizes = {"train_size": run.dataset.train_size, "validation_size": run.dataset.validation_size}
    true = split(load_data(run.dataset.data, data_dir), label_noise=0, seed=run.seed, **sizes).train.samples.labels
    train, given = done.task.splits.train, []
    told = train.samples.labels
    for batch in train.batches(1000):
        given.append(done.model(batch.content[0]).argmax(-1))
    answered, wrong = torch.cat(given), told != true

    def share(hits: torch.Tensor) -> float | None:
        return rounded(100 * float(hits.float().mean()))

    return {
        "right_learned": share((answered == told)[~wrong]),
        "wrong_learned": share((answered == told)[wrong]),
        "wrong_corrected": share((answered == true)[wrong]),
    }


def write(file: Path, records: Iterable[dict[str, Any]]) -> None:
    write_atomic(file, "".join(json.dumps(with_checksum(record)) + "\n" for record in records).encode())


def rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def gathered(store: Path, data_dir: Path | None) -> None:
    """Write a line for every finished run into ``results/``; lines of planned runs that this store does not hold stay."""
    for name, parts in ORDER.items():
        cells: dict[RunConfig, list[list[str]]] = {}
        for part in parts:
            for run, places in planned(part, data_dir).items():
                cells.setdefault(run, []).extend(place for place in places if place not in cells.get(run, []))
        there = {r["key"]: r for r in (read_json_lines(DATA[name]) if DATA[name].is_file() else [])}
        kept: dict[str, dict[str, Any]] = {}  # in the order of the plan
        for outcome in outcomes(list(cells), store):
            stands, places = key(outcome.run), cells[outcome.run]
            if outcome.result is not None:
                kept[stands] = {**there.get(stands, {}), **line(outcome.run, places, outcome.folder)}
            elif stands in there:
                kept[stands] = {**there[stands], "cells": places}
        write(DATA[name], {**kept, **{stands: r for stands, r in there.items() if stands not in kept}}.values())


def share_record(run: ResolvedRun) -> dict[str, Any]:
    """The share of an unmasked perturbation's squared norm on active weights, step by step, over a run."""
    parts, found = build(run), []
    names = {p: name for name, p in parts.model.named_parameters()}

    def watched(optimizer: Any, gradients: dict[Any, torch.Tensor]) -> dict[Any, torch.Tensor]:
        masks = parts.training.masks
        live = sum(float((g * masks.get(names[p], 1)).square().sum()) for p, g in gradients.items())
        found.append(live / sum(float(g.square().sum()) for g in gradients.values()))
        return gradients

    parts.optimizer.direction = watched  # type: ignore[attr-defined]  # S2SAM takes any function
    for epoch in range(run.schedule.epochs):
        parts.net.train()
        for batch in parts.task.splits.train.batches(run.optim.batch_size, seed=run.seed, epoch=epoch):
            take_step(parts, [batch])
            parts.optimizer.zero_grad()
            parts.schedule.step()
    half, about = len(found) // 2, environment()
    return {
        "first_half": rounded(statistics.fmean(found[:half])),
        "second_half": rounded(statistics.fmean(found[half:])),
        "on": {**about["versions"], **about["machine"]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=ROOT / "runs" / "evidence", help="where the runs are kept")
    parser.add_argument("--data-dir", type=Path, help="folder of cifar-10-batches-py (or set FLATSPARSE_DATA)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once; two are as many as the page was made with")
    parser.add_argument(
        "--parts", nargs="*", help="which recipes, share, landscape, learned; by default all, in their order"
    )
    parser.add_argument(
        "--again", action="store_true", help="run what has its line in results/ too, as to check it here"
    )
    parser.add_argument("--gather", action="store_true", help="run nothing, take up what is finished")
    parser.add_argument("--page", action="store_true", help="only make the page, from results/ alone")
    args = parser.parse_args()

    def wanted(name: str) -> bool:
        return not args.gather and (args.parts is None or name in args.parts)

    if not args.page:
        files = [] if args.again else [file for file in DATA.values() if file.is_file()]
        known = {r["key"] for file in files for r in read_json_lines(file)}
        for part in itertools.chain(*ORDER.values()):
            if wanted(part[0]):
                todo = [run for run in planned(part, args.data_dir) if key(run) not in known]
                run_grid(todo, args.store, jobs=args.jobs, title=f"evidence-{part[0]}")
        gathered(args.store, args.data_dir)
        if wanted("share"):
            shares(args.data_dir)
        if wanted("landscape"):
            landscapes(args.store, args.data_dir, args.jobs)
        if wanted("learned"):
            learned(args.store, args.data_dir)
    PAGE.write_text(rendered(), encoding="utf-8")
    cells = by_cell(read())
    for name, draw in PICTURES.items():
        draw(cells).savefig(PAGE.with_name(f"{name}.png"), dpi=110)


if __name__ == "__main__":
    main()
