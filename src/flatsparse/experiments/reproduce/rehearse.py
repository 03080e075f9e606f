"""Rehearsals: three true steps of each cell of a recipe on made-up data, and what a run of it would take."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flatsparse.common.errors import InputError
from flatsparse.common.json_files import write_json
from flatsparse.experiments.data.sources import load
from flatsparse.experiments.grid.store import key
from flatsparse.experiments.progress import Progress
from flatsparse.experiments.recipes.recipe import Cell, Recipe, Scale
from flatsparse.experiments.reproduce.made_up import made_up, training_samples
from flatsparse.experiments.reproduce.select import matches, selected, with_controls
from flatsparse.experiments.reproduce.steps import STEPS, Steps, changes_masks, take_steps
from flatsparse.experiments.run.config import ResolvedRun, change
from flatsparse.experiments.run.method import rounds_of, with_method_options
from flatsparse.experiments.run.resolve import resolve
from flatsparse.experiments.terminal import Console
from flatsparse.measure.estimate import Estimate, estimate_plan
from flatsparse.methods import named

BATCH_SIZE = 2  # samples of a step: as few as batch norm takes of any net
GPU_TFLOPS = 38.7  # peak in float32 of an RTX A6000, of which the paper used four
UTILIZATION = 0.5  # the share of the peak that training reaches: an assumption


@dataclass(frozen=True)
class Rehearsal:
    """The part of recipes to rehearse, and how.

    Attributes:
        only, controls, data_dir, device: as of ``reproduce``.
        gpu_tflops: the peak of a GPU, in 10¹² operations a second.
        batch_size: samples of a step.
    """

    scale: Scale
    only: str | None = None
    controls: bool = False
    data_dir: Path | None = None
    device: str = "auto"
    gpu_tflops: float = GPU_TFLOPS
    batch_size: int = BATCH_SIZE


def rehearse(recipes: Sequence[Recipe], chosen: Rehearsal, console: Console) -> dict[str, Any]:
    """Rehearse the cells of some recipes, equal runs once, and return the record.

    Raises: InputError when no cell is chosen.
    """
    tables = {recipe.name: _cells(recipe, chosen) for recipe in recipes}
    if chosen.only is not None and not any(tables.values()):
        for recipe in recipes:  # which tells the near ones
            selected(recipe.cells(chosen.scale), chosen.only)
    runs: dict[str, ResolvedRun] = {}
    places = {name: [(cell, _add(runs, cell)) for cell in cells] for name, cells in tables.items()}
    work = _Work(chosen)
    rehearsed = {}
    with Progress(console, "rehearsing", len(runs)) as progress:
        for name, run in runs.items():
            progress.update(title=f"rehearsing {run.dataset.title}, {run.model}, {run.pruning.method}")
            rehearsed[name] = work.rehearsed(run)
            progress.advance()
    return {
        "scale": chosen.scale,
        "only": chosen.only,
        "device": next((run.runtime.device for run in runs.values()), chosen.device),
        "batch_size": chosen.batch_size,
        "steps": STEPS,
        "gpu_tflops": chosen.gpu_tflops,
        "utilization": UTILIZATION,
        "tables": [
            {
                "name": recipe.name,
                "title": recipe.title,
                "cells": [
                    {
                        "row": cell.row,
                        "column": cell.column,
                        "sharpness": cell.run.sharpness,
                        "control": cell.control,
                        "run": run,
                        "needs": cell.needs,
                    }
                    for cell, run in places[recipe.name]
                ],
            }
            for recipe in recipes
        ],
        "runs": rehearsed,
    }


def write_rehearsal(record: Mapping[str, Any], text: str, out: Path) -> Path:
    """Write a rehearsal's record and its text into a folder. Returns the file of the record."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise InputError(f"cannot write to '{out}' ({problem.strerror}): give another --out") from None
    write_json(out / "rehearsal.json", record)
    (out / "rehearsal.txt").write_text(text, encoding="utf-8")
    return out / "rehearsal.json"


def _cells(recipe: Recipe, chosen: Rehearsal) -> list[Cell]:
    listed = recipe.cells(chosen.scale)
    cells = [c for c in (with_controls(listed) if chosen.controls else listed) if matches(c.name, chosen.only)]
    return [
        dataclasses.replace(cell, run=resolve(change(cell.run, data_dir=chosen.data_dir, device=chosen.device)))
        for cell in cells
    ]


def _add(runs: dict[str, ResolvedRun], cell: Cell) -> str:
    name = key(cell.run)
    runs.setdefault(name, resolve(cell.run))
    return name


class _Work:
    """The rehearsal of runs, with what several of them share."""

    def __init__(self, chosen: Rehearsal) -> None:
        self.chosen = chosen
        self._estimates: dict[Any, Estimate] = {}
        self._missing: dict[str, str | None] = {}

    def rehearsed(self, run: ResolvedRun) -> dict[str, Any]:
        """Return what is known of a run, and why it does not run where it does not."""
        record = {
            "data": run.dataset.title,
            "model": run.model,
            "method": run.pruning.method,
            "sharpness": run.sharpness,
            "rho": run.rho if run.sharpness != "none" else 0.0,
            "batch_size": run.optim.batch_size,
            "epochs": run.schedule.whole_epochs * rounds_of(run),
            "missing": self._lacking(run),
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are of the few made-up samples
            try:
                samples = training_samples(run)
            except InputError as problem:
                return {**record, "runs": None, "why": str(problem)}
            try:
                steps = take_steps(run, self.chosen.batch_size)
                reason = fault(run, steps)
                estimate = self._estimate(run, steps, samples)
            except Exception as problem:
                first = next(iter(str(problem).splitlines()), "")
                return {**record, "runs": False, "why": f"{type(problem).__name__}: {first}"}
        return {**record, "runs": reason is None, "why": reason, **self._numbers(run, samples, steps, estimate)}

    def _numbers(self, run: ResolvedRun, samples: int, steps: Steps, estimate: Estimate) -> dict[str, Any]:
        trained = samples * run.schedule.whole_epochs * rounds_of(run)
        once = 3 * estimate.inference_dense * samples * run.schedule.epochs
        products = 3 * estimate.inference_dense * run.passes * trained  # masked weights are multiplied too
        memory = dataclasses.asdict(steps.memory)
        return {
            "samples": samples,
            "steps": {
                name: getattr(steps, name) for name in ("losses", "radii", "updates", "moved", "seconds", "batch_size")
            },
            "parameters": steps.parameters,
            "memory": {**memory, "total": steps.memory.at(run.optim.batch_size)},
            "flops": {
                "inference": estimate.inference,
                "inference_share": estimate.inference_ratio,
                "train_sample": estimate.step,
                "train": estimate.step * trained,
                "train_share": estimate.step * trained / once,
            },
            "gpu_hours": products / (self.chosen.gpu_tflops * 1e12 * UTILIZATION) / 3600,
        }

    def _estimate(self, run: ResolvedRun, steps: Steps, samples: int) -> Estimate:
        per_epoch = -(-samples // run.optim.batch_size)
        about = (run.dataset.title, run.model, run.pruning, run.schedule, per_epoch, run.passes)
        if about not in self._estimates:
            task = made_up(run, 1)
            with torch.device("meta"):
                model = task.fresh()
            pruning, number = run.pruning, run.schedule.whole_epochs * per_epoch
            _, options = with_method_options(run, run.schedule.epochs * per_epoch)
            plan = named(pruning.method, options).plan(pruning.sparsity, number)
            self._estimates[about] = estimate_plan(
                model,
                steps.cost,
                plan,
                number,
                run.passes,
                include=pruning.include,
                exclude=pruning.exclude,
                layers=pruning.layers,
            )
        return self._estimates[about]

    def _lacking(self, run: ResolvedRun) -> list[str]:
        """Return what a run needs that is not here: its data, a GPU."""
        data = run.dataset.title
        if data not in self._missing:
            with _offline():
                try:
                    load(data, self.chosen.data_dir)
                    self._missing[data] = None
                except InputError as problem:
                    self._missing[data] = str(problem)
        lacking = self._missing[data]
        gpu = [] if torch.cuda.is_available() else ["a GPU"]
        return ([] if lacking is None else [f"data: {lacking}"]) + gpu


def fault(run: ResolvedRun, steps: Steps) -> str | None:
    """Return what the steps of a run did not do that a run of its kind does; None where they did all."""
    if not steps.finite:
        return f"the loss became {next(x for x in steps.losses if x - x != 0)} within {STEPS} steps"
    if changes_masks(run) and not steps.moved:
        return f"no mask changed within {STEPS} steps"
    if run.sharpness != "none" and run.rho > 0 and not any(steps.radii):
        return f"no weight was perturbed within {STEPS} steps"
    return None


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """A context in which data sets are not looked for on the hub: a rehearsal downloads nothing."""
    import datasets
    import huggingface_hub

    switches = [(datasets.config, "HF_HUB_OFFLINE"), (huggingface_hub.constants, "HF_HUB_OFFLINE")]
    before = [getattr(module, name) for module, name in switches]
    try:
        for module, name in switches:
            setattr(module, name, True)
        yield
    finally:
        for (module, name), value in zip(switches, before, strict=True):
            setattr(module, name, value)
