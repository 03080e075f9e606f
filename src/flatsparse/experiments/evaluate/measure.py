"""Predictions of finished runs on corrupted test images, measured piece by piece; nothing is measured twice."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flatsparse.common.errors import InputError
from flatsparse.common.files import corrupt_file, remove_temporary
from flatsparse.experiments.data.corrupted import CorruptedSet, read_corrupted
from flatsparse.experiments.data.corruptions import CORRUPTIONS, SEVERITIES
from flatsparse.experiments.data.streamed import StreamedSplit
from flatsparse.experiments.evaluate.settings import ALEXNET, Evaluation
from flatsparse.experiments.grid.workers import local_executor
from flatsparse.experiments.pieces import load_piece, save_piece
from flatsparse.experiments.progress import Progress
from flatsparse.experiments.robustness import (
    Images,
    corrupted,
    images_at_once,
    images_of,
    published,
    right_predictions,
    spread,
)
from flatsparse.experiments.run.load import Finished, load_run
from flatsparse.experiments.tasks.classification import Classification
from flatsparse.experiments.terminal import Console

PIECES = "pieces"
CLEAN = ("clean", 0)
IMAGENET_CLASSES = 1000

Kind = tuple[str, int]  # a corruption and its severity, or CLEAN
Predictions = Mapping[Path, Mapping[Kind, Tensor]]  # of each run, which images are given the right class


@dataclass(frozen=True)
class Piece:
    """The images of one corruption at one severity, the runs that have not been measured on them, and a file for each run."""

    settings: Evaluation
    kind: Kind
    runs: tuple[Path, ...]
    files: tuple[Path, ...]

    def run(self) -> None:
        """Measure the predictions and save them."""
        chosen = self.settings
        runs = [_loaded(folder, chosen.device, chosen.data_dir) for folder in self.runs]
        first = _loaded(chosen.runs[0], chosen.device, chosen.data_dir)
        found = right_predictions(runs, _images(chosen, first, self.kind, images_at_once(runs)))
        for file, right in zip(self.files, found, strict=True):
            save_piece(file, {"right": right})

    def lost(self, reason: str) -> None:
        """Stop: the process that measured it died."""
        raise InputError(f"{self.kind[0]} could not be measured: {reason}")


def corruptions_of(settings: Evaluation, runs: Sequence[Finished]) -> list[str]:
    """Return the names of the corruptions that runs are evaluated on.

    Raises: InputError for runs on anything but images, on unlike images, and for a folder that holds none of the corruptions.
    """
    for cache in (_loaded, _published):  # a folder may hold something else by now
        cache.cache_clear()
    _check_same_images(runs)
    source = published_set(settings, runs[0])
    known = CORRUPTIONS if source is None else source.paths
    names = [name for name in known if not settings.only or name in settings.only]
    if not names:
        raise InputError(f"'{settings.corrupted}' has none of {', '.join(settings.only)}: give others to --only")
    return names


def predictions(
    settings: Evaluation, runs: Sequence[Finished], names: Sequence[str], out: Path, console: Console
) -> dict[Path, dict[Kind, Tensor]]:
    """Return for each run which images it gives the right class, of each corruption at each severity and of the clean ones.

    Args:
        settings: resolved.
        runs: those of ``settings.measured``.
        names: of the corruptions; see ``corruptions_of``.
        out: the folder, which is locked; ``pieces`` there keeps what has been measured.

    Raises: InputError for published images that do not fit.
    """
    source = published_set(settings, runs[0])
    kinds = [CLEAN, *((name, severity) for name in names for severity in SEVERITIES)]
    place = out / PIECES
    place.mkdir(exist_ok=True)
    remove_temporary(place)
    files = {
        (run.folder, kind): place / f"{_key(settings, run, kind, source)}.safetensors" for run in runs for kind in kinds
    }
    _measure(settings, kinds, files, len(images_of(runs[0], settings.images)), console)
    return {run.folder: {kind: _read(files[run.folder, kind]) for kind in kinds} for run in runs}


def published_set(settings: Evaluation, run: Finished) -> CorruptedSet | None:
    """Return the published set that is read; None where corruptions are made."""
    if settings.corrupted is None:
        return None
    assert isinstance(run.task, Classification)  # its images are of classes
    found = _published(settings.corrupted, run.task.class_names or run.task.classes)
    if settings.reference == ALEXNET and (found.kind != "folders" or run.task.classes != IMAGENET_CLASSES):
        raise InputError(
            f"alexnet's errors are those on ImageNet-C, which '{settings.corrupted}' is not: give a run as --reference"
        )
    return found


def _measure(
    settings: Evaluation, kinds: Sequence[Kind], files: Mapping[tuple[Path, Kind], Path], images: int, console: Console
) -> None:
    """Measure what is missing, with a progress bar; one piece that fails stops the rest and its error is raised."""
    todo = []
    for kind in kinds:
        missing = [run for run in settings.measured if not files[run, kind].is_file()]
        if missing:
            todo.append(Piece(settings, kind, tuple(missing), tuple(files[run, kind] for run in missing)))
    before = len(kinds) - len(todo)
    assert settings.jobs is not None  # resolved
    bar = Progress(console, "evaluating", len(kinds) * images, done=before * images)
    with bar as progress, local_executor(settings.jobs) as executor:
        for piece, _ in executor.map(todo):
            progress.advance(images)
            progress.update(note=" ".join(map(str, piece.kind)))
    if before:
        console.print(f"{before} of {len(kinds)} parts were measured before")


def _images(settings: Evaluation, run: Finished, kind: Kind, size: int) -> Images:
    """Return the images of a corruption at a severity."""
    test = images_of(run)
    if isinstance(test, StreamedSplit) and settings.jobs != 1:
        test = dataclasses.replace(test, workers=0)  # the processes are many as it is
    if settings.corrupted is None or kind == CLEAN:
        images = spread(test, settings.images).pixels(size)
        return images if kind == CLEAN else corrupted(images, *kind, settings.seed)
    source = published_set(settings, run)
    assert source is not None
    part = next(part for part in source.parts(kind[0]) if part.severity == kind[1])
    return spread(published(test, part), settings.images).pixels(size)


@functools.lru_cache(maxsize=32)
def _loaded(folder: Path, device: str, data_dir: Path | None) -> Finished:
    return load_run(folder, device=device, data_dir=data_dir)


@functools.lru_cache(maxsize=1)
def _published(folder: Path, classes: tuple[str, ...] | int) -> CorruptedSet:
    return read_corrupted(folder, classes)


def _check_same_images(runs: Sequence[Finished]) -> None:
    """Raise InputError for runs that are tested on unlike images."""

    def images(run: Finished) -> Any:
        test = images_of(run)
        return run.task.identity["fingerprint"], test.view if isinstance(test, StreamedSplit) else None

    for run in runs[1:]:
        if images(run) != images(runs[0]):
            raise InputError(
                f"'{run.folder}' is tested on other images than '{runs[0].folder}' (other data, or another --image-size):"
                " evaluate them apart"
            )


def _key(settings: Evaluation, run: Finished, kind: Kind, source: CorruptedSet | None) -> str:
    """Return a name for all that the predictions of a run depend on."""
    parts: list[Any] = [run.digest, run.task.identity["fingerprint"], kind, settings.images, settings.device]
    if kind != CLEAN:
        parts.append(settings.seed if source is None else _state(source, kind))
    return hashlib.sha256(json.dumps([*parts, str(torch.__version__)]).encode()).hexdigest()[:16]


def _state(source: CorruptedSet, kind: Kind) -> list[Any]:
    """Return what tells that the images of a corruption are still the same: when files, or class folders, were changed."""
    place = source.paths[kind[0]]
    if source.kind == "arrays":
        return [str(place.resolve()), place.stat().st_size, place.stat().st_mtime_ns]
    with os.scandir(place / str(kind[1])) as folders:
        return [str(place.resolve()), *sorted((folder.name, folder.stat().st_mtime_ns) for folder in folders)]


def _read(file: Path) -> Tensor:
    right = load_piece(file).get("right")
    if right is None or right.dtype != torch.bool or right.ndim != 1 or not len(right):
        raise corrupt_file(file, "it has not the predictions of its images")
    return right
