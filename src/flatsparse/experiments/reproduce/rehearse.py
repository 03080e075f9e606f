"""Rehearsals: three true steps of each cell of a recipe on made-up data, and what a run of it would take."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flatsparse.common.errors import InputError, check_count, check_finite
from flatsparse.common.files import write_atomic
from flatsparse.common.json_files import write_json
from flatsparse.experiments.grid.store import key
from flatsparse.experiments.grid.workers import default_jobs, local_executor
from flatsparse.experiments.progress import Progress
from flatsparse.experiments.recipes.recipe import Cell, Recipe, Scale
from flatsparse.experiments.reproduce.rehearsal_job import UTILIZATION, Record, RehearsalJob
from flatsparse.experiments.reproduce.select import cells_of, matches, selected
from flatsparse.experiments.reproduce.steps import STEPS
from flatsparse.experiments.run.config import ResolvedRun, change
from flatsparse.experiments.run.method import rounds_of
from flatsparse.experiments.run.resolve import resolve
from flatsparse.experiments.tasks.make import check_data
from flatsparse.experiments.terminal import Console

SAMPLES = 2  # of a step: as few as batch norm takes in any net
GPU_TFLOPS = 38.7  # peak in float32 of an RTX A6000, of which the paper used four


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """The part of recipes to rehearse, and how.

    Attributes:
        scale, only, controls, at_once, data_dir, device, jobs: as of ``reproduce``.
        gpu_tflops: the peak of a GPU, in 10¹² operations a second.
        samples: in a step.
    """

    scale: Scale
    only: str | None = None
    controls: bool = False
    at_once: int | None = None
    data_dir: Path | None = None
    device: str = "auto"
    jobs: int | None = None
    gpu_tflops: float = GPU_TFLOPS
    samples: int = SAMPLES


def rehearse(recipes: Sequence[Recipe], chosen: Rehearsal, console: Console) -> Record:
    """Rehearse the cells of some recipes, equal runs once, and return the record.

    Raises: InputError when no cell is chosen, and for one that cannot be.
    """
    check_finite("--gpu-tflops", chosen.gpu_tflops, above=True)
    tables = {recipe.name: _cells(recipe, chosen) for recipe in recipes}
    if chosen.only is not None and not any(tables.values()):
        for recipe in recipes:  # which tells the near ones
            selected(recipe.cells(chosen.scale), chosen.only)
    runs = {key(cell.run): resolve(cell.run) for cells in tables.values() for cell in cells}
    by_data = {run.dataset.title: run for run in runs.values()}
    missing = {title: _missing(run, chosen) for title, run in by_data.items()}
    rehearsed = _rehearsed(runs, chosen, console)
    return {
        **{name: getattr(chosen, name) for name in ("scale", "only", "samples", "gpu_tflops")},
        "utilization": UTILIZATION,
        "steps": STEPS,
        "device": next((run.runtime.device for run in runs.values()), chosen.device),
        "tables": [
            {"name": recipe.name, "title": recipe.title, "cells": [_of_cell(cell) for cell in tables[recipe.name]]}
            for recipe in recipes
        ],
        "runs": {
            name: {**_of_run(run), "missing": missing[run.dataset.title], **rehearsed[name]}
            for name, run in runs.items()
        },
    }


def write_rehearsal(record: Mapping[str, Any], text: str, out: Path) -> Path:
    """Write a rehearsal's record and its text into a folder. Returns the file of the record."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise InputError(f"cannot write to '{out}' ({problem.strerror}): give another --out") from None
    write_json(out / "rehearsal.json", record)
    write_atomic(out / "rehearsal.txt", text.encode(errors="replace"))  # a path may be no text
    return out / "rehearsal.json"


def _cells(recipe: Recipe, chosen: Rehearsal) -> list[Cell]:
    listed = cells_of(recipe, chosen.scale, controls=chosen.controls, at_once=chosen.at_once)
    cells = [cell for cell in listed if matches(cell.name, chosen.only)]
    return [
        dataclasses.replace(cell, run=resolve(change(cell.run, data_dir=chosen.data_dir, device=chosen.device)))
        for cell in cells
    ]


def _rehearsed(runs: Mapping[str, ResolvedRun], chosen: Rehearsal, console: Console) -> dict[str, Record]:
    alike: dict[Hashable, dict[str, ResolvedRun]] = {}
    for name, run in runs.items():
        alike.setdefault((run.dataset, run.model, run.pruning, run.schedule, run.optim), {})[name] = run
    jobs = [RehearsalJob(group, chosen.samples, chosen.gpu_tflops) for group in alike.values()]
    at_once = default_jobs(next(iter(runs.values())).runtime.device) if runs else 1
    if chosen.jobs is not None:
        at_once = check_count("--jobs", chosen.jobs)
    records: dict[str, Record] = {}
    with (
        Progress(console, "rehearsing", len(runs)) as progress,
        local_executor(max(1, min(at_once, len(jobs)))) as executor,
    ):
        for _, found in executor.map(jobs):
            records |= found
            progress.advance(len(found))
    return records


def _of_cell(cell: Cell) -> Record:
    return {
        "row": cell.row,
        "column": cell.column,
        "sharpness": cell.run.sharpness,
        "control": cell.control,
        "needs": cell.needs,
        "run": key(cell.run),
    }


def _of_run(run: ResolvedRun) -> Record:
    return {
        "data": run.dataset.title,
        "model": run.model,
        "method": run.pruning.method,
        "sharpness": run.sharpness,
        "rho": run.rho if run.sharpness != "none" else 0.0,
        "batch_size": run.optim.batch_size,
        "epochs": run.schedule.whole_epochs * rounds_of(run),
    }


def _missing(run: ResolvedRun, chosen: Rehearsal) -> list[str]:
    """Return what a run needs that is not here: its data, a GPU."""
    missing = [] if torch.cuda.is_available() else ["a GPU"]
    if run.dataset.task is not None:
        return missing
    with _offline():
        try:
            check_data(run.dataset.data, chosen.data_dir)
        except InputError as problem:
            return [f"data: {problem}", *missing]
    return missing


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """A context in which data sets are not looked for on the hub: a rehearsal downloads nothing."""
    import datasets
    import huggingface_hub

    switches = [(module, "HF_HUB_OFFLINE") for module in (datasets.config, huggingface_hub.constants)]
    before = [getattr(module, name) for module, name in switches]
    try:
        for module, name in switches:
            setattr(module, name, True)
        yield
    finally:
        for (module, name), value in zip(switches, before, strict=True):
            setattr(module, name, value)
