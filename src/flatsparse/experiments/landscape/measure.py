"""Loss surfaces and curvature of finished runs, measured piece by piece; nothing is measured twice."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatsparse.common.errors import InputError
from flatsparse.common.files import corrupt_file, remove_temporary
from flatsparse.common.json_files import write_json
from flatsparse.experiments.claims import claim
from flatsparse.experiments.data.split import Batch
from flatsparse.experiments.grid.workers import local_executor
from flatsparse.experiments.landscape import curvature
from flatsparse.experiments.landscape.batch_norm_folding import folded
from flatsparse.experiments.landscape.records import tabulate
from flatsparse.experiments.landscape.settings import KINDS, Kind, Landscape
from flatsparse.experiments.pieces import load_piece, read_piece, save_piece, write_piece
from flatsparse.experiments.progress import Progress
from flatsparse.experiments.run.load import Finished, load_run
from flatsparse.experiments.tasks.run_task import RunTask
from flatsparse.experiments.terminal import Console
from flatsparse.measure import surface
from flatsparse.measure.surface import Plane, Weights

PIECE = 25  # points: what a kill may cost
BATCH = 40  # images; with many more, what is between layers leaves the caches


@dataclass(frozen=True)
class _Measurement:
    """A part of the measurement of a run, which can be passed to another process."""

    settings: Landscape
    folder: Path

    def lost(self, reason: str) -> None:
        """Stop: the process that measured it died."""
        raise InputError(f"'{self.folder}' could not be measured: {reason}, with --resume")


@dataclass(frozen=True)
class Piece(_Measurement):
    """Some consecutive points of one surface, and the file that holds their losses once they are known."""

    kind: Kind
    pair: int
    start: int
    bf16: bool
    file: Path

    @property
    def points(self) -> Tensor:
        return surface.grid(self.settings.axis(self.pair))[self.start : self.start + PIECE]

    @property
    def work(self) -> int:
        """Images that go through the network."""
        return len(self.points) * self.settings.images

    def run(self) -> None:
        """Measure the losses and save them."""
        chosen = self.settings
        weights, loss = _ready(self.folder, chosen.images, chosen.device, chosen.data_dir, self.bf16)
        plane = _plane(self.folder, chosen.device, chosen.data_dir, chosen.seed, self.pair, self.kind)
        values = {"losses": surface.losses(loss, weights, plane, self.points, chosen.at_once).cpu()}
        if self.bf16:
            values["rounded"] = values["losses"].clone()
            exact = _ready(self.folder, chosen.images, chosen.device, chosen.data_dir, False)[1]
            for index in (self.points == 0).all(1).nonzero():  # the model's own loss is not rounded
                values["losses"][index] = exact(weights).cpu()
        save_piece(self.file, values)


@dataclass(frozen=True)
class Curvature(_Measurement):
    """The curvature at the weights of one run, and the file for it."""

    file: Path

    @property
    def work(self) -> int:
        """As of a piece, roughly: a product with the Hessian is worth four passes."""
        return 4 * curvature.PRODUCTS * self.settings.hessian_images

    def run(self) -> None:
        """Measure the curvature and save it."""
        run = _loaded(self.folder, self.settings.device, self.settings.data_dir)
        write_piece(self.file, curvature.curvature(run, self.settings.hessian_images, self.settings.seed))


def measure(
    settings: Landscape, out: Path, *, resume: bool = False, console: Console | None = None
) -> list[dict[str, Any]]:
    """Measure surfaces and curvature of finished runs into a folder and return a record for each run.

    Args:
        settings: what to measure; see ``Landscape``.
        out: the folder; ``landscape.json`` there holds the records, ``pieces`` the measurements so far.
        resume: continue in the same folder, possibly with other runs; nothing is measured twice.
        console: where progress is shown.

    Raises: InputError for what cannot be measured, or a folder that holds something else.
    """
    settings, console = settings.resolved(), console or Console(stderr=True)
    about = [_about(load_run(folder, data_dir=settings.data_dir), settings) for folder in settings.runs]
    with claim(out, "settings.json", settings.as_dict(), resume=resume, free=("runs", "clip", "data_dir", "jobs")):
        return _measure(settings, about, out, console)


def _measure(settings: Landscape, about: Sequence[dict[str, Any]], out: Path, console: Console) -> list[dict[str, Any]]:
    """Measure with resolved settings in their folder; ``about`` describes each run."""
    (out / "pieces").mkdir(exist_ok=True)
    remove_temporary(out / "pieces")
    surfaces = {
        (run, kind, pair): _pieces(settings, run, record, kind, pair, out / "pieces")
        for run, record in zip(settings.runs, about, strict=True)  # outermost, so that a worker seldom loads another
        for kind in settings.kinds
        for pair in range(settings.pairs)
    }
    curvatures = [
        Curvature(settings, run, out / "pieces" / f"{_curvature_key(settings, record)}-hessian.json")
        for run, record in zip(settings.runs, about, strict=True)
        if settings.hessian_images
    ]
    # Curvature first: it is one piece a run, and long.
    _measure_all([*curvatures, *(piece for pieces in surfaces.values() for piece in pieces)], settings, console)
    for record, piece in zip(about, curvatures, strict=False):
        record |= read_piece(piece.file, curvature.FORM)
    for run, record in zip(settings.runs, about, strict=True):
        if record["precision"] == "bf16":
            record["rounded_centre"] = float(_centre(_assembled(surfaces[run, settings.kinds[0], 0], "rounded")))
    values = {place: _assembled(pieces) for place, pieces in surfaces.items()}
    records = tabulate(settings, about, values)
    write_json(out / "landscape.json", {"settings": settings.as_dict(), "kinds": KINDS, "runs": records})
    return records


def _about(run: Finished, settings: Landscape) -> dict[str, Any]:
    """The description of a run in a record, without the run's data. Raises InputError where nothing would be left of it."""
    loss = run.result.train_loss
    if run.result.scored and settings.clip is not None and loss >= settings.clip:
        raise InputError(
            f"the loss of '{run.folder}' is {loss:.4g} at its weights, and all above --clip {settings.clip:g} is cut: give"
            f" more, such as --clip {5 * loss:.2g}"
        )
    return {
        "run": str(run.folder),
        "digest": run.digest,
        **{
            key: getattr(run.result, key)
            for key in ("data", "model", "method", "sharpness", "rho", "seed", "test_accuracy")
        },
        **({"task": run.result.task} if run.result.task else {}),
        **({"scores": run.result.scores} if run.result.scored else {}),
        "sparsity": run.result.sparsity.prunable,
        "images": min(settings.images, len(run.task.splits.train)),
        "unit": run.task.unit,
        "loss": run.task.loss_name,
        "precision": "bf16" if settings.in_bf16(run.result.flops.inference_dense) else "float32",
    }


def _pieces(settings: Landscape, run: Path, about: dict[str, Any], kind: Kind, pair: int, folder: Path) -> list[Piece]:
    """A surface's pieces. A file's name identifies everything that its losses depend on."""
    axis = settings.axis(pair)
    parts = [about["digest"], about["precision"], kind, pair, axis, PIECE, BATCH, str(torch.__version__)]
    parts += [settings.seed, settings.images, settings.at_once, settings.device]
    key = _key(parts)
    starts = range(0, len(axis) ** 2, PIECE)
    return [
        Piece(settings, run, kind, pair, s, about["precision"] == "bf16", folder / f"{key}-{s:05}.safetensors")
        for s in starts
    ]


def _curvature_key(settings: Landscape, about: dict[str, Any]) -> str:
    parts = [about["digest"], curvature.PRODUCTS, BATCH, str(torch.__version__)]
    return _key([*parts, settings.seed, settings.hessian_images, settings.device])


def _key(parts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _measure_all(pieces: Sequence[Piece | Curvature], settings: Landscape, console: Console) -> None:
    """Measure the missing pieces, with a progress bar; one that fails stops the rest and its error is raised."""
    for cache in (_loaded, _ready, _plane):  # a folder may hold another run by now
        cache.cache_clear()
    todo = [piece for piece in pieces if not piece.file.is_file()]
    whole = sum(piece.work for piece in pieces)
    before = whole - sum(piece.work for piece in todo)
    with Progress(console, "measuring", whole, done=before) as progress:
        assert settings.jobs is not None  # resolved
        with local_executor(settings.jobs) as executor:
            for piece, _ in executor.map(todo):
                progress.advance(piece.work)
                progress.update(note=f"{progress.done / whole:.0%}")
    if not console.is_terminal:
        earlier = f", {len(pieces) - len(todo)} before" if len(todo) < len(pieces) else ""
        console.print(f"measured {len(todo)} pieces{earlier}")


# A worker's pieces mostly belong to the surface that the last one belonged to.
@functools.lru_cache(maxsize=1)
def _loaded(folder: Path, device: str, data_dir: Path | None) -> Finished:
    run = load_run(folder, device=device, data_dir=data_dir)
    if not run.task.scored:
        run.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as the images are
    return run


@functools.lru_cache(maxsize=2)
def _ready(
    folder: Path, images: int, device: str, data_dir: Path | None, bf16: bool
) -> tuple[Weights, Callable[[Weights], Tensor]]:
    run = _loaded(folder, device, data_dir)
    return {name: p.detach() for name, p in run.model.named_parameters()}, mean_loss(run, images, bf16=bf16)


@functools.lru_cache(maxsize=1)
def _plane(folder: Path, device: str, data_dir: Path | None, seed: int, pair: int, kind: Kind) -> Plane:
    run = _loaded(folder, device, data_dir)
    masks = run.masks if kind == "live" else None
    one, other = (surface.direction(run.model, seed, "landscape", pair, n, masks=masks) for n in (0, 1))
    return one, other


def mean_loss(run: Finished, images: int, *, bf16: bool = False) -> Callable[[Weights], Tensor]:
    """Return the mean loss over a run's first training samples, as a function of its weights.

    In evaluation mode, so with the batch-norm statistics of training; without augmentation; labels as trained on; with
    ``bf16`` under autocast.
    """
    chosen = run.task.splits.train.first(images)
    batches = list(chosen.batches(chosen.at_once(BATCH)))
    model, fold = (run.model, dict) if run.task.scored else folded(run.model)  # a loss may need the model itself
    summed = _Summed(model, run.task)

    def of_batch(weights: Weights, batch: Batch) -> Tensor:
        with torch.autocast(next(model.parameters()).device.type, torch.bfloat16, enabled=bf16):
            return torch.func.functional_call(summed, weights, (batch,))  # type: ignore[no-any-return]  # no type of its own

    def loss(weights: Weights) -> Tensor:
        weights = {f"model.{name}": weight for name, weight in fold(weights).items()}
        return torch.stack([of_batch(weights, batch).double() for batch in batches]).sum() / len(chosen)

    return loss


class _Summed(nn.Module):
    """The summed loss of a batch as a module, whose weights can be replaced."""

    def __init__(self, model: nn.Module, task: RunTask) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, batch: Batch) -> Tensor:
        return self.task.summed(self.model, batch)


def _assembled(pieces: Sequence[Piece], what: str = "losses") -> Tensor:
    values = torch.cat([_losses(piece, what) for piece in pieces])
    side = math.isqrt(len(values))
    return values.view(side, side)


def _losses(piece: Piece, what: str) -> Tensor:
    values = load_piece(piece.file).get(what)
    if values is None or values.shape != (len(piece.points),) or not values.is_floating_point():
        raise corrupt_file(piece.file, f"it has not the {what} of its points")
    return values


def _centre(values: Tensor) -> Tensor:
    return values[len(values) // 2, len(values) // 2]
