"""From a recipe to its record: choose cells, run them, measure, compare, write."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import fnmatch
import functools
import os
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatsparse.common.errors import InputError, check_count
from flatsparse.common.json_files import write_json
from flatsparse.experiments.compare import TUNING_SEEDS
from flatsparse.experiments.data.sources import load
from flatsparse.experiments.grid.store import key, outcomes, run_grid
from flatsparse.experiments.plotting import save
from flatsparse.experiments.recipes import recipes
from flatsparse.experiments.recipes.recipe import Cell, Recipe, Scale, Work, controls
from flatsparse.experiments.reproduce.pictures import pareto
from flatsparse.experiments.reproduce.table import Line, readings, tabulate
from flatsparse.experiments.run.config import RunConfig, change
from flatsparse.experiments.run.devices import usable_device
from flatsparse.experiments.run.resolve import resolve
from flatsparse.experiments.terminal import Console


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What of a recipe is made, and how."""

    scale: Scale = "smoke"
    """smoke: every cell in seconds, figures mean little; laptop: a small study in hours; paper: the published setting."""
    only: str | None = None
    """Only cells whose "row column" this shell pattern or regular expression meets, e.g. 'mest*90%'."""
    seeds: int | None = None
    """So many seeds, from the recipe's first, which is 0 for most. By default the recipe's."""
    controls: bool = False
    """Join S²-SAM's cells by SAM, a random direction, plain training twice as long, and the scripts' weight decays."""
    data_dir: Path | None = None
    """Where local copies of data sets lie (or set FLATSPARSE_DATA)."""
    device: str = "auto"
    """Where to train: cpu, cuda, or auto (cuda if there is one)."""
    jobs: int | None = None
    """Runs at once. By default one for each core, or one on an accelerator."""
    cluster: str | None = None
    """Address of a Ray cluster to run on, or local for one started here (extra 'cluster')."""
    retry: bool = False
    """Run again what failed before."""


def make(recipe: Recipe, choice: Choice, out: Path, console: Console) -> dict[str, Any]:
    """Reproduce a recipe into a folder and return its record, which is also ``<name>-<scale>.json`` there.

    The folder is the store of all recipes: a finished run is never run again, whichever asked for it first. Cells that are not
    chosen are not run, but have their rows, with what the store holds of them: a table makes all its claims at once.

    Raises: InputError for what cannot be made, such as when no cell is chosen or none has its data.
    """
    cells = recipe.cells(choice.scale)
    if choice.controls:
        cells = with_controls(cells)
    seeds = recipe.seeds.get(choice.scale) if choice.seeds is None else check_count("--seeds", choice.seeds)
    if seeds is None:
        raise InputError(f"recipe '{recipe.name}' does not say how many seeds it has in {choice.scale}: give --seeds")
    if recipe.first_seed < TUNING_SEEDS < recipe.first_seed + seeds:
        raise InputError(
            f"--seeds {seeds} would judge seeds that ρ is chosen by, which begin at {TUNING_SEEDS}: give fewer"
        )
    missing = _missing_data(cells, choice)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise InputError(f"cannot write to '{out}' ({problem.strerror}): give another --out") from None
    lines = _run(cells, range(recipe.first_seed, recipe.first_seed + seeds), missing, choice, out, console)
    measured = None
    if recipe.measure is not None:
        place = out / f"{recipe.name}-{choice.scale}"
        place.mkdir(parents=True, exist_ok=True)
        work = Work(choice.scale, place, choice.data_dir, usable_device(choice.device), choice.jobs, console)
        done = [(line.cell, [o.folder for o in line.outcomes if o.result is not None]) for line in lines]
        measured = recipe.measure([(cell, folders) for cell, folders in done if folders], work)
    rows = tabulate(recipe, choice.scale, lines, measured, out)
    rows += [] if measured is None else readings(recipe, measured)
    pictures = [] if measured is None else list(measured.pictures)
    drawn = pareto(rows, recipe.metric)
    if drawn is not None:
        pictures.append(out / f"{recipe.name}-{choice.scale}-flops.png")
        save(drawn, pictures[-1])
    data_sets = _data_sets(lines)
    names = [told["name"] for told in data_sets]
    mixed = sorted({name for name in names if names.count(name) > 1})
    record = {
        "name": recipe.name,
        "scale": choice.scale,
        "title": recipe.title,
        "source": recipe.source,
        "notes": list(recipe.notes),
        "metric": recipe.metric.name,
        "better": recipe.metric.better,
        "comparable": recipe.metric.comparable,
        "seeds": seeds,
        "controls": choice.controls,
        "rows": rows,
        "data_sets": data_sets,
        "said": [
            *elsewhere(recipe, choice.scale),
            *([] if measured is None else measured.said),
            *(f"runs on {name} saw unlike images under that name: make them anew on one copy" for name in mixed),
        ],
        "pictures": [os.path.relpath(picture, out) for picture in pictures],
    }
    write_json(out / f"{recipe.name}-{choice.scale}.json", record)
    return record


def _data_sets(lines: Sequence[Line]) -> list[dict[str, str]]:
    """What the finished runs were made on, each once; results of old do not say it."""
    results = [outcome.result for line in lines for outcome in line.outcomes if outcome.result is not None]
    found = {told["fingerprint"]: told for result in results if (told := result.data_set) is not None}
    return list(found.values())


def chosen(cells: Sequence[Cell], only: str | None) -> list[Cell]:
    """The cells whose "row column" a pattern meets: a shell pattern of the whole, or a regular expression found in it.

    Raises: InputError for a pattern that meets none, with the nearest there are.
    """
    if only is None:
        return list(cells)
    if not cells:
        raise InputError(f"--only '{only}' chooses among runs, and this is measured without any: leave it out")
    found = [cell for cell in cells if meets(cell.name, only)]
    if not found:
        names = list(dict.fromkeys(cell.name for cell in cells))
        plain = {name.lower(): name for name in names}
        near = [plain[n] for n in difflib.get_close_matches(only.lower().strip("*^$"), plain, n=5, cutoff=0.3)]
        raise InputError(
            f"--only '{only}' meets none of {len(names)} places: near it are {', '.join(near or names[:5])}"
        )
    return found


def meets(name: str, pattern: str | None) -> bool:
    """Whether a "row column" is among those that ``--only`` asks for."""
    if pattern is None or fnmatch.fnmatch(name.lower(), pattern.lower()) or pattern.lower() in name.lower():
        return True
    try:
        return re.search(pattern, name, re.IGNORECASE) is not None
    except re.error:
        return False


def with_controls(cells: Sequence[Cell]) -> list[Cell]:
    """The same with the controls of every S²-SAM cell after it, less those that the table itself has."""
    told = []
    there = {(cell.name, cell.run) for cell in cells}
    for cell in cells:
        told.append(cell)
        if cell.run.sharpness == "s2sam" and cell.control is None:
            told += [control for control in controls(cell) if (control.name, control.run) not in there]
    return told


def _missing_data(cells: Sequence[Cell], choice: Choice) -> dict[str, str]:
    """The data sets of chosen cells that are not there, and how to get each.

    Raises: InputError when no chosen cell can be run for want of them, or none was chosen.
    """
    asked = chosen(cells, choice.only)
    missing: dict[str, str] = {}
    for data in dict.fromkeys(cell.run.dataset.data for cell in asked if cell.needs is None):
        try:
            load(data, choice.data_dir)
        except InputError as problem:
            missing[data] = str(problem)
    if missing and all(cell.needs or cell.run.dataset.data in missing for cell in asked):
        raise InputError(next(iter(missing.values())))
    return missing


def elsewhere(recipe: Recipe, scale: Scale) -> list[str]:
    """A sentence when tables that measure the same have all runs of this one, which then adds no evidence to theirs."""
    mine = _keys(recipe, scale)
    if not mine:
        return []
    tables = {name: theirs for name, (theirs, alike) in _tables(scale).items() if alike == _alike(recipe)}
    same = [f"{name}'s" for name, theirs in tables.items() if name != recipe.name and mine <= theirs]
    if not same:
        return []
    return [f"Every run here is one of {' and of '.join(same)} too, so that its claims are no evidence beside those."]


@functools.cache
def _tables(scale: Scale) -> dict[str, tuple[frozenset[str], Hashable]]:
    return {name: (_keys(recipe, scale), _alike(recipe)) for name, recipe in recipes().items()}


def _alike(recipe: Recipe) -> Hashable:
    return recipe.metric, recipe.measure, recipe.first_seed


def _keys(recipe: Recipe, scale: Scale) -> frozenset[str]:
    """Those of a table's runs, of one seed."""
    with contextlib.suppress(InputError):  # a run that cannot be is told of where it fails
        return frozenset(key(cell.run) for cell in recipe.cells(scale) if cell.needs is None)
    return frozenset()


def _run(
    cells: Sequence[Cell], seeds: range, missing: Mapping[str, str], choice: Choice, out: Path, console: Console
) -> list[Line]:
    """Run what is chosen and can be run, each once even where several cells share it; what is finished needs no data."""

    def run(cell: Cell, seed: int) -> RunConfig:
        return resolve(change(cell.run, seed=seed, data_dir=choice.data_dir, device=choice.device))

    wanted = [[] if cell.needs else [run(cell, seed) for seed in seeds] for cell in cells]
    every = list(dict.fromkeys(run for runs in wanted for run in runs))
    asked = [
        run
        for cell, runs in zip(cells, wanted, strict=True)
        if meets(cell.name, choice.only) and cell.run.dataset.data not in missing
        for run in runs
    ]
    if asked:
        run_grid(asked, out, jobs=choice.jobs, cluster=choice.cluster, retry=choice.retry, console=console)
    found = dict(zip(every, outcomes(every, out), strict=True))
    lines = []
    for cell, runs in zip(cells, wanted, strict=True):
        of_cell = [found[run] for run in runs]
        needs = missing.get(cell.run.dataset.data) if any(outcome.result is None for outcome in of_cell) else None
        lines.append(Line(dataclasses.replace(cell, needs=cell.needs or needs), of_cell))
    return lines
