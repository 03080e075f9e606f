"""``flatsparse export``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from flatsparse.common.errors import check_count
from flatsparse.experiments.export import RECORD, export, line, scored
from flatsparse.experiments.run.devices import usable_device
from flatsparse.experiments.run.load import load_run
from flatsparse.experiments.terminal import Console


@dataclass(frozen=True)
class Export:
    """Write a finished run in forms that others can use, each checked by reading it back."""

    run: tyro.conf.Positional[Path]
    """The run's folder. Where it names a file of your own for task or network, its code is then run."""
    format: tuple[str, ...] = ("dense", "masks")
    """dense (with zeros), masks, small (fewer channels), csr, 2:4 (needs an NVIDIA GPU) or onnx (needs the extra onnx)."""
    out: Path | None = None
    """Folder to write to. By default the folder export in the run's folder."""
    images: int = 1000
    """Number of test samples on which each file, read back, is compared with the run."""
    device: str = "cpu"
    """Device to compute on."""
    data_dir: Path | None = None
    """Folder of local copies of data sets. By default that of the run."""

    def __call__(self) -> None:
        check_count("--images", self.images)
        finished = load_run(self.run, device=usable_device(self.device), data_dir=self.data_dir)
        console, out = Console(), self.out or self.run / "export"

        def show(text: str) -> None:
            console.print(text, highlight=False, soft_wrap=True)

        record = export(
            finished, self.format, out, images=self.images, report=lambda name, form: show(line(name, form))
        )
        run = record["run"]
        show(
            f"the run itself has {scored(run)} on {run['images']} test {finished.task.unit}; {out / RECORD} has it all"
        )
