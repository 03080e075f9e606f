"""Scores of finished runs after changes to their weights, measured piece by piece; nothing is measured twice."""

from __future__ import annotations

import functools
import hashlib
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flatsparse.common.errors import InputError
from flatsparse.common.files import remove_temporary
from flatsparse.experiments.data.split import Split
from flatsparse.experiments.evaluate.changes import UNCHANGED, Change, changed
from flatsparse.experiments.evaluate.settings import Evaluation
from flatsparse.experiments.grid.workers import local_executor
from flatsparse.experiments.pieces import read_piece, write_piece
from flatsparse.experiments.progress import Progress
from flatsparse.experiments.run.config import as_json, change
from flatsparse.experiments.run.evaluation import evaluated
from flatsparse.experiments.run.load import Finished, load_run
from flatsparse.experiments.terminal import Console

PIECES = "pieces"
MEASURED = {"loss": float, "scores": {str: float}, "validation": ({str: float}, None)}


@dataclass(frozen=True)
class Piece:
    """A run, a change, and the file for what is measured."""

    settings: Evaluation
    folder: Path
    change: Change
    file: Path

    def run(self) -> None:
        """Measure the scores and save them."""
        chosen = self.settings
        run = _loaded(self.folder, chosen.device, chosen.data_dir)
        found: dict[str, list[dict[str, Any]]] = {}
        for name, model in changed(run, self.change):
            found.setdefault(name, []).append(_scores(chosen, run, model, self.change))
        write_piece(self.file, {"after": {name: _mean(draws) for name, draws in found.items()}})

    def lost(self, reason: str) -> None:
        """Stop: the process that measured it died."""
        raise InputError(f"'{self.folder}' after {self.change.name} could not be measured: {reason}")


def after_changes(settings: Evaluation, runs: Sequence[Finished], out: Path, console: Console) -> dict[str, Any]:
    """Return the scores of runs as trained and after each change, with the settings in which the runs differ.

    Args:
        settings: resolved.
        runs: those of ``settings.runs``.
        out: the folder, which is locked; ``pieces`` there keeps what has been measured.
    """
    _loaded.cache_clear()  # a folder may hold something else by now
    changes = [UNCHANGED, *map(Change.named, settings.after)]
    place = out / PIECES
    place.mkdir(exist_ok=True)
    remove_temporary(place)
    pieces = [
        Piece(settings, run.folder, one, place / f"{_key(settings, run, one)}.json") for run in runs for one in changes
    ]
    _measure([piece for piece in pieces if not piece.file.is_file()], len(pieces), settings, console)
    names = [name for one in changes for name in one.parts]
    measured: dict[Path, dict[str, Any]] = {run.folder: {} for run in runs}
    for piece in pieces:
        form = dict.fromkeys(piece.change.parts, MEASURED)
        measured[piece.folder] |= read_piece(piece.file, {"after": form})["after"]
    return {
        "changes": names,
        "better": runs[0].task.better,
        "runs": [{"arm": arm, "after": measured[run.folder]} for run, arm in zip(runs, arms(runs), strict=True)],
    }


def arms(runs: Sequence[Finished]) -> list[dict[str, Any]]:
    """Return for each run the settings, but for the seed, in which some runs differ."""
    left_out = {"seed", "data_dir", "init_sha256"}
    starts = {(run.run.seed, run.run.init_sha256) for run in runs}
    if len(starts) == len({seed for seed, _ in starts}) and all(start is not None for _, start in starts):
        left_out.add("init")  # each seed has a start of its own, as seeds have, or all have the same from other places
    every = [{k: v for k, v in as_json(run.run).items() if k not in left_out} for run in runs]
    differing = [name for name in every[0] if any(one.get(name) != every[0][name] for one in every)]
    return [{name: one.get(name) for name in differing} for one in every]


def _measure(todo: Sequence[Piece], whole: int, settings: Evaluation, console: Console) -> None:
    """Measure what is missing, with a progress bar; one piece that fails stops the rest and its error is raised."""
    assert settings.jobs is not None  # resolved
    before = whole - len(todo)
    with Progress(console, "evaluating", whole, done=before) as progress, local_executor(settings.jobs) as executor:
        for piece, _ in executor.map(todo):
            progress.advance()
            progress.update(note=f"{piece.folder.name} {piece.change.name}")
    if before:
        console.print(f"{before} of {whole} parts were measured before")


def _scores(settings: Evaluation, run: Finished, model: nn.Module, made: Change) -> dict[str, Any]:
    """Return the loss and scores of a changed network on the test samples, and its scores on the validation samples."""
    dynamic = made.kind == "int8-dynamic"  # torch computes it on CPUs only
    own = change(run.run, device="cpu" if dynamic else settings.device)
    task = run.task.to(torch.device("cpu")) if dynamic else run.task

    def on(split: Split) -> Any:
        return evaluated(own, task, model, split if settings.images is None else split.first(settings.images))

    test, validation = on(task.splits.test), on(task.splits.validation)
    if test is None:
        raise InputError(f"'{run.folder}' has no test samples: there is nothing to evaluate it on")
    return {
        "loss": test.loss,
        "scores": test.scores,
        "validation": None if validation is None else validation.scores,
    }


def _mean(draws: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the means over draws of a change."""

    def means(key: str) -> dict[str, float] | None:
        if draws[0][key] is None:
            return None
        return {name: statistics.fmean(draw[key][name] for draw in draws) for name in draws[0][key]}

    return {
        "loss": statistics.fmean(draw["loss"] for draw in draws),
        "scores": means("scores"),
        "validation": means("validation"),
    }


@functools.lru_cache(maxsize=4)
def _loaded(folder: Path, device: str, data_dir: Path | None) -> Finished:
    return load_run(folder, device=device, data_dir=data_dir)


def _key(settings: Evaluation, run: Finished, one: Change) -> str:
    """Return a name for all that the scores of a run after a change depend on."""
    parts = [run.digest, run.task.identity["fingerprint"], one.name, settings.images, settings.device]
    return hashlib.sha256(json.dumps([*parts, str(torch.__version__)]).encode()).hexdigest()[:16]
