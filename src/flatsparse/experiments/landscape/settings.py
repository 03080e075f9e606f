"""The settings of measurements around finished runs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import tyro

from flatsparse.common.errors import InputError, check_count, check_finite, unknown
from flatsparse.experiments.grid.workers import default_jobs
from flatsparse.experiments.run.devices import usable_device
from flatsparse.experiments.run.precision import has_bf16
from flatsparse.measure import surface

Kind = Literal["live", "full"]
KINDS: dict[Kind, str] = {
    "live": "within the active weights: directions are masked, then normalized",
    "full": "in the full space: weights outside the masks move too",
}


LARGE = 1e7  # FLOPs an image; ResNet-20 has 8e7


@dataclass(frozen=True)
class Landscape:
    """Surfaces that are drawn along the same directions and over the same range."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of finished runs. Where they name a file of your own for task or network, its code is then run."""
    kinds: tuple[Kind, ...] = ("live",)
    """live: within the active weights; full: in the full space, where weights outside the masks move too; or both."""
    points: int = 51
    """Number of points along each of the two directions; odd, so that the weights themselves are one."""
    reach: float = 1.0
    """The surface goes from -reach to reach; 1 moves each filter by about its own length."""
    images: int = 2000
    """Number of training images, the first of each run, to average the loss over; all if there are fewer."""
    pairs: int = 5
    """Pairs of directions for the interval of the roughness; the first is drawn."""
    stride: int | None = None
    """Compare pairs on every n-th point of the grid. By default the largest n, up to 6, that keeps centre and corners."""
    clip: float | None = 10.0
    """Clip losses at this value, in the roughness and in the pictures; None: do not clip. Guessing among 10 classes costs 2.3."""
    hessian_images: int = 100
    """Number of training images for the Hessian; 0 leaves out curvature and directional loss increases."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """Precision of all points but the centre: float32, bf16, or auto: bf16 for large networks where hardware supports it."""
    seed: int = 0
    """Seed of the directions."""
    data_dir: Path | None = None
    """Folder of local copies of data sets. By default that of each run."""
    device: str = "auto"
    """Device to measure on: cpu, cuda, or auto (cuda if there is one)."""
    at_once: int = 1
    """Number of points evaluated in one call of the network; more than one is slower on a CPU."""
    jobs: int | None = None
    """Number of parallel processes. By default one per core, or one on an accelerator."""

    def resolved(self) -> Landscape:
        """Return the settings with defaults filled in. Raises InputError for anything that cannot be measured."""
        if not self.runs:
            raise InputError("landscape got no run: give one or more folders that flatsparse train wrote")
        places = [run.resolve() for run in self.runs]
        twice = next((run for run in self.runs if places.count(run.resolve()) > 1), None)
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
        check_count("--hessian-images", self.hessian_images, minimum=0)
        if self.clip is not None:
            check_finite("--clip", self.clip, above=True)
        half = self.points // 2
        stride = max(n for n in range(1, 7) if half % n == 0) if self.stride is None else self.stride
        check_count("--stride", stride)
        if half % stride:
            raise InputError(
                f"--stride {stride} misses the centre or the corners of {self.points} points: give a divisor of {half}"
            )
        device = usable_device(self.device)
        jobs = default_jobs(device) if self.jobs is None else self.jobs
        check_count("--jobs", jobs)
        kinds = tuple(kind for kind in get_args(Kind) if kind in self.kinds)
        return dataclasses.replace(self, kinds=kinds, stride=stride, device=device, jobs=jobs)

    def in_bf16(self, operations: float) -> bool:
        """True where a network of this many FLOPs an image is evaluated in bf16; for small ones it saves nothing."""
        return self.precision == "bf16" or (self.precision == "auto" and operations > LARGE and has_bf16(self.device))

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        data_dir = None if self.data_dir is None else str(self.data_dir)
        return {**dataclasses.asdict(self), "runs": [str(run) for run in self.runs], "data_dir": data_dir}

    def axis(self, pair: int) -> tuple[float, ...]:
        """The points along each direction: all for the pair that is drawn, fewer for the others."""
        return tuple(surface.axis(self.points, self.reach)[:: self.stride if pair else 1])
