"""Run a recipe: choose cells, run them, measure, compare, write the record."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatsparse.common.errors import InputError, check_count
from flatsparse.common.json_files import write_json
from flatsparse.experiments.grid.store import key, outcomes, run_grid
from flatsparse.experiments.metric import ACCURACY, Metric, decimals
from flatsparse.experiments.plotting import save
from flatsparse.experiments.recipes import recipes
from flatsparse.experiments.recipes.recipe import TUNING_SEEDS, Cell, Measured, Recipe, Scale, Work
from flatsparse.experiments.reproduce.pictures import pareto
from flatsparse.experiments.reproduce.select import cells_of, matches, selected
from flatsparse.experiments.reproduce.table import Line, lines_of, readings, runs_of, tabulate
from flatsparse.experiments.run.config import change
from flatsparse.experiments.run.devices import usable_device
from flatsparse.experiments.run.resolve import resolve
from flatsparse.experiments.tasks.make import check_data
from flatsparse.experiments.terminal import Console


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The part of a recipe to reproduce, and how."""

    scale: Scale = "smoke"
    """smoke: every cell in seconds, its figures mean little; laptop: a small study in hours; paper: the published setting."""
    only: str | None = None
    """Only cells whose "row column" this shell pattern or regular expression matches, e.g. '*90%'."""
    seeds: int | None = None
    """Number of seeds, counted from the recipe's first, usually 0. By default the recipe's own number."""
    controls: bool = False
    """Add controls to S²-SAM's cells: SAM, a random direction, plain training twice as long, the scripts' weight decays."""
    at_once: int | None = None
    """Samples (of text, tokens) that are computed at once, at most: larger batches are computed in equal parts, whose
    gradients add up, and batch norm takes its statistics of a part. By default whole batches."""
    data_dir: Path | None = None
    """Folder of local copies of data sets (or set FLATSPARSE_DATA)."""
    device: str = "auto"
    """Device to train on: cpu, cuda, or auto (cuda if there is one)."""
    jobs: int | None = None
    """Number of parallel runs. By default one per core, or one on an accelerator."""
    cluster: str | None = None
    """Address of a Ray cluster to run on, or local for one started here (extra 'cluster')."""
    retry: bool = False
    """Repeat failed runs."""
    rehearse: bool = False
    """Train nothing: take three steps of every cell on made-up data of the real shapes, and report memory, FLOPs, what is
    missing and the GPU hours to expect."""
    gpu_tflops: float = 38.7
    """For --rehearse: a GPU's peak in 10¹² operations a second, of which half is assumed to be reached. By default that of an
    RTX A6000 in float32."""


def run_recipe(recipe: Recipe, choice: Choice, out: Path, console: Console) -> dict[str, Any]:
    """Reproduce a recipe into a folder and return its record, which is also ``<name>-<scale>.json`` there.

    The folder is the store of all recipes: a finished run is never run again, whichever asked for it first. Cells that are not
    chosen are not run, but have their rows, with what the store holds of them: a table makes all its claims at once.

    Raises: InputError for what cannot be reproduced, such as when no cell is chosen or none has its data.
    """
    cells = cells_of(recipe, choice.scale, controls=choice.controls, at_once=choice.at_once)
    seeds = _seeds(recipe, choice)
    missing = _missing_data(cells, choice)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise InputError(f"cannot write to '{out}' ({problem.strerror}): give another --out") from None
    lines = _run(cells, seeds, missing, choice, out, console)
    recipe = _of_scores(recipe, lines)
    measured = None if recipe.measure is None else _measure(recipe, lines, choice, out, console)
    record = _record(recipe, choice, lines, measured, out)
    write_json(out / f"{recipe.name}-{choice.scale}.json", record)
    return record


def _seeds(recipe: Recipe, choice: Choice) -> range:
    seeds = recipe.seeds.get(choice.scale) if choice.seeds is None else check_count("--seeds", choice.seeds)
    if seeds is None:
        raise InputError(f"recipe '{recipe.name}' does not say how many seeds it has in {choice.scale}: give --seeds")
    if recipe.first_seed < TUNING_SEEDS < recipe.first_seed + seeds:
        raise InputError(
            f"--seeds {seeds} would judge seeds that ρ is chosen by, which begin at {TUNING_SEEDS}: give fewer"
        )
    return range(recipe.first_seed, recipe.first_seed + seeds)


def _measure(recipe: Recipe, lines: Sequence[Line], choice: Choice, out: Path, console: Console) -> Measured:
    assert recipe.measure is not None  # or this is not called
    folder = out / f"{recipe.name}-{choice.scale}"
    folder.mkdir(parents=True, exist_ok=True)
    work = Work(choice.scale, folder, choice.data_dir, usable_device(choice.device), choice.jobs, console)
    return recipe.measure([(line.cell, line.folders) for line in lines if line.folders], work)


def _record(
    recipe: Recipe, choice: Choice, lines: Sequence[Line], measured: Measured | None, out: Path
) -> dict[str, Any]:
    """Return the record of a recipe, with its picture of cost drawn."""
    table = tabulate(recipe, choice.scale, lines, measured, out)
    table += [] if measured is None else readings(recipe, measured)
    rows = [row.to_json() for row in table]
    pictures = [] if measured is None else list(measured.pictures)
    if (figure := pareto(rows, recipe.metric)) is not None:
        pictures.append(out / f"{recipe.name}-{choice.scale}-flops.png")
        save(figure, pictures[-1])
    data_sets = _data_sets(lines)
    names = [data_set["name"] for data_set in data_sets]
    mixed = sorted({name for name in names if names.count(name) > 1})
    return {
        "name": recipe.name,
        "scale": choice.scale,
        "title": recipe.title,
        "source": recipe.source,
        "notes": list(recipe.notes),
        "metric": recipe.metric.name,
        "better": recipe.metric.better,
        "comparable": recipe.metric.comparable,
        "seeds": len(_seeds(recipe, choice)),
        "controls": choice.controls,
        "rows": rows,
        "data_sets": data_sets,
        "said": [
            *elsewhere(recipe, choice.scale),
            *([] if measured is None else measured.said),
            *(f"runs on {name} saw different images under that name: run them again on one copy" for name in mixed),
        ],
        "pictures": [os.path.relpath(picture, out) for picture in pictures],
    }


def _of_scores(recipe: Recipe, lines: Sequence[Line]) -> Recipe:
    """Return a recipe with the metric and the direction of its runs' scores, where it names none of its own.

    Raises: InputError for runs of several metrics, and for a metric whose direction is not that of the scores.
    """
    results = [outcome.result for line in lines for outcome in line.outcomes if outcome.result is not None]
    if recipe.measure is not None or not any(result.scored for result in results):
        return recipe
    (metric, *others) = dict.fromkeys((result.metric, result.better or "higher") for result in results)
    if others:
        names = ", ".join(f"{name} ({better} is better)" for name, better in (metric, *others))
        raise InputError(f"the runs of recipe '{recipe.name}' are of several metrics ({names}): make a recipe for each")
    name, better = metric
    if recipe.metric == ACCURACY:
        shown = Metric(name, better, decimals=decimals([result.value for result in results]))
        return dataclasses.replace(recipe, metric=shown)
    if recipe.metric.better != better:
        raise InputError(
            f"recipe '{recipe.name}' says that {recipe.metric.better} is better, and its runs that {better} is: correct its"
            " metric"
        )
    return recipe


def _data_sets(lines: Sequence[Line]) -> list[dict[str, str]]:
    """Return the data sets of the finished runs, each once; old results do not name theirs."""
    results = [outcome.result for line in lines for outcome in line.outcomes if outcome.result is not None]
    data_sets = {r.data_set["fingerprint"]: r.data_set for r in results if r.data_set is not None}
    return list(data_sets.values())


def _missing_data(cells: Sequence[Cell], choice: Choice) -> dict[str, str]:
    """Return the data sets of chosen cells that are not there, and how to get each.

    Raises: InputError when no chosen cell can be run for want of them, or none was chosen.
    """
    chosen = selected(cells, choice.only)
    missing: dict[str, str] = {}
    named = (cell.run.dataset for cell in chosen if cell.needs is None and cell.run.dataset.task is None)
    for data in dict.fromkeys(dataset.data for dataset in named):
        try:
            check_data(data, choice.data_dir)
        except InputError as problem:
            missing[data] = str(problem)
    if missing and all(cell.needs or cell.run.dataset.title in missing for cell in chosen):
        raise InputError(next(iter(missing.values())))
    return missing


def elsewhere(recipe: Recipe, scale: Scale) -> list[str]:
    """Return a sentence when tables that measure the same have all runs of this one, which then adds no evidence to theirs."""
    keys = _keys(recipe, scale)
    if not keys:
        return []
    tables = {name: others for name, (others, alike) in _tables(scale).items() if alike == _alike(recipe)}
    same = [f"{name}'s" for name, others in tables.items() if name != recipe.name and keys <= others]
    if not same:
        return []
    return [f"Every run here is one of {' and of '.join(same)} too, so that its claims are no evidence beside those."]


@functools.cache
def _tables(scale: Scale) -> dict[str, tuple[frozenset[str], Hashable]]:
    return {name: (_keys(recipe, scale), _alike(recipe)) for name, recipe in recipes().items()}


def _alike(recipe: Recipe) -> Hashable:
    return recipe.metric, recipe.measure, recipe.first_seed


def _keys(recipe: Recipe, scale: Scale) -> frozenset[str]:
    """Return the keys of a table's runs, of one seed."""
    with contextlib.suppress(InputError):  # a run that cannot be is reported where it fails
        return frozenset(key(cell.run) for cell in recipe.cells(scale) if cell.needs is None)
    return frozenset()


def _run(
    cells: Sequence[Cell], seeds: range, missing: Mapping[str, str], choice: Choice, out: Path, console: Console
) -> list[Line]:
    """Run what is chosen and can be run, each once even where several cells share it; what is finished needs no data."""
    configured = [
        cell if cell.needs else _with_run(cell, data_dir=choice.data_dir, device=choice.device) for cell in cells
    ]
    asked = [cell for cell in configured if matches(cell.name, choice.only) and cell.run.dataset.title not in missing]
    if runs := runs_of(asked, seeds):
        run_grid(runs, out, jobs=choice.jobs, cluster=choice.cluster, retry=choice.retry, console=console)
    lines = []
    for line in lines_of(configured, outcomes(runs_of(configured, seeds), out)):
        lacks = any(outcome.result is None for outcome in line.outcomes)
        needs = missing.get(line.cell.run.dataset.title) if lacks else None
        lines.append(dataclasses.replace(line, cell=dataclasses.replace(line.cell, needs=line.cell.needs or needs)))
    return lines


def _with_run(cell: Cell, **settings: Any) -> Cell:
    """Return a cell with some settings of its run changed. Raises InputError for a run that cannot be."""
    return dataclasses.replace(cell, run=resolve(change(cell.run, **settings)))
