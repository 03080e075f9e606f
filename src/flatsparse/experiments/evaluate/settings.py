"""The settings of an evaluation of finished runs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from flatsparse.common.errors import InputError, check_count, unknown
from flatsparse.experiments.data.corruptions import CORRUPTIONS
from flatsparse.experiments.evaluate.changes import Change
from flatsparse.experiments.grid.workers import default_jobs
from flatsparse.experiments.run.devices import usable_device

ALEXNET = "alexnet"


@dataclass(frozen=True)
class Evaluation:
    """The samples that finished runs are evaluated on."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of finished runs. Several are compared with the first, image by image. Where they name a file of your own for task
    or network, its code is then run."""
    corruptions: bool = False
    """Make the 15 published corruptions and 4 extra ones of the test images, at five severities."""
    corrupted: Path | None = None
    """Read published corruptions from this folder: CIFAR-10-C's arrays or ImageNet-C's folders."""
    only: tuple[str, ...] = ()
    """Names of corruptions. By default all."""
    after: tuple[str, ...] = ()
    """Changes of the weights after training: int8 int4 int3 prune30 noise0.2 finetune and their like."""
    reference: str | None = None
    """The run whose errors corruption errors are divided by, or alexnet, whose errors on ImageNet-C are published."""
    images: int | None = None
    """Number of test samples: with corruptions at even distances, else the first. By default all."""
    seed: int = 0
    """Seed of the corruptions that are made."""
    data_dir: Path | None = None
    """Folder of local copies of data sets. By default that of each run."""
    device: str = "auto"
    """Device to compute on: cpu, cuda, or auto (cuda if there is one)."""
    jobs: int | None = None
    """Number of parallel processes. By default one per core, or one on an accelerator."""

    @property
    def of_corruptions(self) -> bool:
        """True where corrupted images are evaluated."""
        return self.corruptions or self.corrupted is not None

    @property
    def measured(self) -> tuple[Path, ...]:
        """The runs, and the reference where it is another run."""
        if self.reference in (None, ALEXNET):
            return self.runs
        reference = Path(str(self.reference))
        known = {run.resolve() for run in self.runs}
        return self.runs if reference.resolve() in known else (*self.runs, reference)

    def resolved(self) -> Evaluation:
        """Return the settings with defaults filled in. Raises InputError for anything that cannot be measured."""
        if not self.runs:
            raise InputError("evaluate got no run: give one or more folders that flatsparse train wrote")
        places = [run.resolve() for run in self.runs]
        twice = next((run for run in self.runs if places.count(run.resolve()) > 1), None)
        if twice is not None:
            raise InputError(f"'{twice}' is given twice: give each run once")
        if self.corruptions and self.corrupted is not None:
            raise InputError("--corruptions makes images and --corrupted reads them: give one of the two")
        for name in self.only:
            if name not in CORRUPTIONS:
                raise unknown("corruption", name, CORRUPTIONS)
        if self.after and self.of_corruptions:
            raise InputError("--after changes the weights and corruptions the images: evaluate them apart")
        for number, name in enumerate(self.after):
            Change.named(name)
            if name in self.after[:number]:
                raise InputError(f"--after has {name} twice: give each change once")
        if not self.of_corruptions and (self.only or self.reference is not None):
            flag = "--only" if self.only else "--reference"
            raise InputError(f"{flag} is of corruptions: give --corruptions or --corrupted too")
        if self.reference == ALEXNET and self.corrupted is None:
            raise InputError(
                "alexnet's errors are those on ImageNet-C: give --corrupted and its folder, or a run as --reference"
            )
        if self.images is not None:
            check_count("--images", self.images)
        device = usable_device(self.device)
        jobs = default_jobs(device) if self.jobs is None else self.jobs
        check_count("--jobs", jobs)
        return dataclasses.replace(self, device=device, jobs=jobs)

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        paths = {
            name: None if (path := getattr(self, name)) is None else str(path) for name in ("corrupted", "data_dir")
        }
        return {**dataclasses.asdict(self), "runs": [str(run) for run in self.runs], **paths}
