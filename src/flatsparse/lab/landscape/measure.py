"""Loss surfaces of finished runs, measured piece by piece; what is there is not measured again."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from flatsparse import landscape
from flatsparse.errors import InputError, check_count, check_finite, unknown
from flatsparse.lab import task
from flatsparse.lab.data import batches
from flatsparse.lab.files import claim
from flatsparse.lab.finished import Finished, load_run
from flatsparse.lab.pool import cores, workers
from flatsparse.lab.run import usable_device
from flatsparse.lab.statistics import Difference, paired_difference
from flatsparse.landscape import Plane, Weights
from flatsparse.storage import load_tensors, remove_halves, save_tensors, write_json

Kind = Literal["live", "full"]
KINDS: dict[Kind, str] = {
    "live": "within the live weights: directions are masked, then normalized",
    "full": "in the full space: weights outside the masks move too",
}
PIECE = 25  # points: what a kill may cost
BATCH = 125  # images; at 500 a point takes half as long again, because what is between layers leaves the caches
SHARES = (0.25, 0.5, 1.0)  # of the reach, at which Ra is told: far out it is the clip's as much as the network's


@dataclass(frozen=True)
class Landscape:
    """Surfaces that are drawn along the same directions and over the same range."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of finished runs."""
    kinds: tuple[Kind, ...] = ("live",)
    """live: within the live weights; full: in the full space, where weights outside the masks move too; or both."""
    points: int = 51
    """Places along each of the two directions, odd, so that the weights themselves are one."""
    reach: float = 1.0
    """The surface goes from -reach to reach; 1 moves each filter by about its own length."""
    images: int = 2000
    """Training images of each run that the loss is averaged over: its first so many, or all if it has fewer."""
    pairs: int = 5
    """Pairs of directions for the interval of the roughness; the first is drawn."""
    stride: int | None = None
    """Compare pairs on every so many-th place of the grid. By default the most, up to 5, that keeps centre and corners."""
    clip: float | None = 10.0
    """Losses above it count as it, in the roughness and in the pictures; None for none. Guessing among 10 costs 2.3."""
    seed: int = 0
    """Decides the directions."""
    data_dir: Path | None = None
    """Where local copies of data sets lie. By default where each run found its own."""
    device: str = "auto"
    """Where to measure: cpu, cuda, or auto (cuda if there is one)."""
    at_once: int = 1
    """Points that are stacked into one call of the network; slower on a CPU."""
    jobs: int | None = None
    """Processes at once. By default one for each core, or one on an accelerator."""

    def resolved(self) -> Landscape:
        """With the defaults filled in. Raises InputError for anything that cannot be measured."""
        if not self.runs:
            raise InputError("landscape got no run: give one or more folders that flatsparse train wrote")
        twice = next((run for run in self.runs if self.runs.count(run) > 1), None)
        if twice is not None:
            raise InputError(f"'{twice}' is given twice: give each run once")
        for kind in self.kinds:
            if kind not in KINDS:
                raise unknown("kind", kind, KINDS)
        if not self.kinds:
            raise InputError("--kinds got none: give live, full or both")
        check_count("--points", self.points, minimum=3)
        if self.points % 2 == 0:
            raise InputError(f"--points {self.points} has no middle: give an odd number, e.g. {self.points + 1}")
        check_finite("--reach", self.reach, above=True)
        for name in ("images", "pairs", "at_once"):
            check_count(f"--{name.replace('_', '-')}", getattr(self, name))
        if self.clip is not None:
            check_finite("--clip", self.clip, above=True)
        half = self.points // 2
        stride = max(n for n in range(1, 6) if half % n == 0) if self.stride is None else self.stride
        check_count("--stride", stride)
        if half % stride:
            raise InputError(
                f"--stride {stride} misses the centre or the corners of {self.points} places: give a divisor of {half}"
            )
        device = usable_device(self.device)
        jobs = (cores() if device == "cpu" else 1) if self.jobs is None else self.jobs
        check_count("--jobs", jobs)
        kinds = tuple(kind for kind in get_args(Kind) if kind in self.kinds)
        return dataclasses.replace(self, kinds=kinds, stride=stride, device=device, jobs=jobs)

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        data_dir = None if self.data_dir is None else str(self.data_dir)
        return {**dataclasses.asdict(self), "runs": [str(run) for run in self.runs], "data_dir": data_dir}

    def axis(self, pair: int) -> tuple[float, ...]:
        """The places along each direction: all for the pair that is drawn, fewer for the others."""
        return tuple(landscape.axis(self.points, self.reach)[:: self.stride if pair else 1])


@dataclass(frozen=True)
class Piece:
    """Some consecutive points of one surface, and the file that holds their losses once they are known."""

    settings: Landscape
    folder: Path
    kind: Kind
    pair: int
    start: int
    file: Path

    @property
    def points(self) -> Tensor:
        return landscape.grid(self.settings.axis(self.pair))[self.start : self.start + PIECE]


def measure(
    settings: Landscape, out: Path, *, resume: bool = False, console: Console | None = None
) -> list[dict[str, Any]]:
    """Measure the surfaces of finished runs into a folder and return a record for each run.

    Args:
        settings: what to measure; see ``Landscape``.
        out: the folder; ``landscape.json`` there holds the records, ``pieces`` what is measured so far.
        resume: go on in the same folder, perhaps with other runs; what is measured is not measured again.
        console: where progress is shown.

    Raises: InputError for what cannot be measured, or a folder that holds something else.
    """
    settings, console = settings.resolved(), console or Console(stderr=True)
    about = [_about(load_run(folder, data_dir=settings.data_dir), settings) for folder in settings.runs]
    claim(out, "settings.json", settings.as_dict(), resume=resume, free=("runs", "clip", "data_dir"))
    (out / "pieces").mkdir(exist_ok=True)
    remove_halves(out / "pieces")
    surfaces = {
        (run, kind, pair): _pieces(settings, run, told["digest"], kind, pair, out / "pieces")
        for run, told in zip(settings.runs, about, strict=True)  # outermost, so that a worker seldom loads another
        for kind in settings.kinds
        for pair in range(settings.pairs)
    }
    _measure_all([piece for pieces in surfaces.values() for piece in pieces], settings, console)
    values = {place: _assembled(pieces) for place, pieces in surfaces.items()}
    records = tabulate(settings, about, values)
    write_json(out / "landscape.json", {"settings": settings.as_dict(), "kinds": KINDS, "runs": records})
    return records


def _about(run: Finished, settings: Landscape) -> dict[str, Any]:
    """What a record says of a run, without the run's data."""
    return {
        "run": str(run.folder),
        "digest": run.digest,
        **{key: run.result[key] for key in ("data", "model", "method", "sharpness", "rho", "seed", "test_accuracy")},
        "sparsity": run.result["sparsity"]["prunable"],
        "images": min(settings.images, len(run.splits.train)),
    }


def _pieces(settings: Landscape, run: Path, digest: str, kind: Kind, pair: int, folder: Path) -> list[Piece]:
    """A surface's pieces. A file's name stands for all that its losses hang on."""
    axis = settings.axis(pair)
    told = [digest, kind, pair, axis, PIECE, BATCH, str(torch.__version__)]
    told += [settings.seed, settings.images, settings.at_once, settings.device]
    key = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
    starts = range(0, len(axis) ** 2, PIECE)
    return [Piece(settings, run, kind, pair, s, folder / f"{key}-{s:05}.safetensors") for s in starts]


def _measure_all(pieces: Sequence[Piece], settings: Landscape, console: Console) -> None:
    """Measure what is not there yet, with a bar; one that fails stops the rest and its error is raised."""
    for cache in (_loaded, _ready, _plane):  # a folder may hold another run by now
        cache.cache_clear()
    columns = (TextColumn("measuring"), BarColumn(), TextColumn("{task.completed}/{task.total} points"))
    left = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    todo = [piece for piece in pieces if not piece.file.is_file()]
    before = sum(len(piece.points) for piece in pieces) - sum(len(piece.points) for piece in todo)
    with Progress(*columns, *left, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=sum(len(piece.points) for piece in pieces), completed=before)
        assert settings.jobs is not None  # resolved
        with workers(settings.jobs) as pool:
            for done in map(_measure_piece, todo) if pool is None else _side_by_side(todo, pool):
                bar.advance(task, done)
    if not console.is_terminal:
        told = f", {before} before" if before else ""
        console.print(f"measured {sum(len(piece.points) for piece in todo)} points{told}")


def _side_by_side(pieces: Sequence[Piece], pool: ProcessPoolExecutor) -> Iterator[int]:
    waiting = {pool.submit(_measure_piece, piece) for piece in pieces}
    try:
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield sum(future.result() for future in done)
    finally:  # after a failure, or Ctrl-C, what has not begun shall not begin
        for future in waiting:
            future.cancel()


def _measure_piece(piece: Piece) -> int:
    """Measure a piece and keep it; how many points it has."""
    settings = piece.settings
    weights, loss = _ready(piece.folder, settings.images, settings.device, settings.data_dir)
    plane = _plane(piece.folder, settings.device, settings.data_dir, settings.seed, piece.pair, piece.kind)
    found = landscape.losses(loss, weights, plane, piece.points, settings.at_once)
    save_tensors(piece.file, {"losses": found.cpu()}, {})
    return len(found)


# A worker's pieces mostly belong to the surface that the last one belonged to.
@functools.lru_cache(maxsize=1)
def _loaded(folder: Path, device: str, data_dir: Path | None) -> Finished:
    run = load_run(folder, device=device, data_dir=data_dir)
    run.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as the images are
    return run


@functools.lru_cache(maxsize=1)
def _ready(
    folder: Path, images: int, device: str, data_dir: Path | None
) -> tuple[Weights, Callable[[Weights], Tensor]]:
    run = _loaded(folder, device, data_dir)
    return {name: p.detach() for name, p in run.model.named_parameters()}, mean_loss(run, images)


@functools.lru_cache(maxsize=1)
def _plane(folder: Path, device: str, data_dir: Path | None, seed: int, pair: int, kind: Kind) -> Plane:
    run = _loaded(folder, device, data_dir)
    masks = run.masks if kind == "live" else None
    one, other = (landscape.direction(run.model, seed, "landscape", pair, n, masks=masks) for n in (0, 1))
    return one, other


def mean_loss(run: Finished, images: int) -> Callable[[Weights], Tensor]:
    """The mean cross-entropy over a run's first training images, as a function of its weights.

    In evaluation mode, so with the batch-norm statistics of training; without augmentation; labels as trained on.
    """
    chosen = run.splits.train.take(torch.arange(min(images, len(run.splits.train))))
    parts = list(batches(chosen, run.splits, size=BATCH))

    def loss(weights: Weights) -> Tensor:
        sums = [
            task.loss(torch.func.functional_call(run.model, weights, (inputs,)), targets, reduction="sum").double()
            for inputs, targets in parts
        ]
        return torch.stack(sums).sum() / chosen.targets

    return loss


def _assembled(pieces: Sequence[Piece]) -> Tensor:
    values = torch.cat([load_tensors(piece.file)[0]["losses"] for piece in pieces])
    side = math.isqrt(len(values))
    return values.view(side, side)


def tabulate(
    settings: Landscape, about: Sequence[dict[str, Any]], values: dict[tuple[Path, Kind, int], Tensor]
) -> list[dict[str, Any]]:
    """A record for each run: what it is, and its surface and roughness of each kind, the first kind's at the top."""
    top, *others = settings.kinds
    names = [run.name for run in settings.runs]
    records = []
    for run, known in zip(settings.runs, about, strict=True):
        told = {kind: _surface(settings, run, kind, values) for kind in settings.kinds}
        half = settings.points // 2
        records.append(
            {
                **known,
                "name": run.name if names.count(run.name) == 1 else str(run),
                "grid": list(settings.axis(0)),
                "centre": float(values[run, top, 0][half, half]),
                "kind": top,
                **told[top],
                "also": {kind: told[kind] for kind in others},
            }
        )
    return records


def of_kind(record: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """A record's losses and roughness of a kind."""
    return record["also"].get(kind, record)


def _surface(
    settings: Landscape, folder: Path, kind: Kind, values: dict[tuple[Path, Kind, int], Tensor]
) -> dict[str, Any]:
    """The drawn surface, and its roughness over the whole of it and over its middle."""
    first, drawn = settings.runs[0], values[folder, kind, 0]

    def pairs(run: Path) -> list[Tensor]:
        """A run's surfaces on the grid that all pairs of directions share."""
        coarse = values[run, kind, 0][:: settings.stride, :: settings.stride]
        return [coarse, *(values[run, kind, n] for n in range(1, settings.pairs))]

    def roughness(share: float) -> dict[str, Any]:
        ours, theirs = ([_ra(settings, _middle(z, share), run) for z in pairs(run)] for run in (folder, first))
        whole, coarse = _middle(drawn, share), _middle(pairs(folder)[0], share)
        return {
            "value": _ra(settings, whole, folder),
            "clipped": 0.0 if settings.clip is None else float((~(whole <= settings.clip)).double().mean()),
            "reach": settings.reach * (len(whole) - 1) / (len(drawn) - 1),
            "by_pair": ours,
            "pairs_reach": settings.reach * (len(coarse) - 1) / (len(settings.axis(1)) - 1),
            "pairs_points": len(coarse),
            **_interval(paired_difference(ours, [0.0] * settings.pairs)),
            "over_first": None if folder == first else _interval(paired_difference(ours, theirs)),
        }

    # On so coarse a grid two shares may be the same places.
    shares = {len(_middle(pairs(folder)[0], share)): share for share in SHARES}
    return {
        "losses": [[z if math.isfinite(z) else None for z in row] for row in drawn.tolist()],
        "ra": {**roughness(1.0), "by_range": [roughness(share) for share in shares.values()]},
    }


def _middle(values: Tensor, share: float) -> Tensor:
    """The middle of a surface, at least a place to each side."""
    half = len(values) // 2
    kept = max(1, math.floor(share * half))
    return values[half - kept : half + kept + 1, half - kept : half + kept + 1]


def _ra(settings: Landscape, values: Tensor, folder: Path) -> float:
    value = landscape.roughness(values, settings.clip)
    if not math.isfinite(value):
        raise InputError(f"the loss around '{folder}' is not finite everywhere: give a --clip, or a smaller --reach")
    return value


def _interval(d: Difference) -> dict[str, Any]:
    return {"mean": d.mean, "interval95": [None, None] if d.pairs < 2 else [d.low, d.high], "pairs": d.pairs}
