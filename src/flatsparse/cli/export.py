"""``flatsparse export``."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from flatsparse.common.errors import InputError, check_count, unknown
from flatsparse.experiments.export import RECORD, export, line, scored
from flatsparse.experiments.export_edge import INT8_FORMS, EdgeOptions
from flatsparse.experiments.progress import Progress
from flatsparse.experiments.run.devices import usable_device
from flatsparse.experiments.run.load import load_run
from flatsparse.experiments.terminal import Console
from flatsparse.export.ethos_u import MEMORIES, MEMORY, TARGET, TARGETS


@dataclass(frozen=True)
class Export:
    """Write a finished run in forms that others can use, each checked by reading it back."""

    run: tyro.conf.Positional[Path]
    """The run's folder. Where it names a file of your own for task or network, its code is then run."""
    format: tuple[str, ...] = ("dense", "masks")
    """dense (with zeros), masks, small (fewer channels), csr, 2:4 (needs an NVIDIA GPU), onnx (needs the extra onnx), and in int8
    ethos-u or xnnpack (need the extra edge)."""
    out: Path | None = None
    """Folder to write to. By default the folder export in the run's folder."""
    images: int = 1000
    """Number of test samples on which each file, read back, is compared with the run."""
    target: str = TARGET
    """Processor of the form ethos-u, as ethos-u55-128, ethos-u65-256 or ethos-u85-256. The U85 alone skips zeros of 2:4."""
    memory: str = MEMORY
    """For the form ethos-u, where weights lie on the device: flash (beside the chip) or sram (on it, all at one speed)."""
    dense: Path | None = None
    """Folder of a finished dense run of the same network, to put beside the form ethos-u. By default it is the same network with
    fresh weights, for its cycles and bytes alone."""
    device: str = "cpu"
    """Device to compute on."""
    data_dir: Path | None = None
    """Folder of local copies of data sets. By default that of the run."""

    def __call__(self) -> None:
        check_count("--images", self.images)
        for name, given, known in (("--target", self.target, TARGETS), ("--memory", self.memory, MEMORIES)):
            if given not in known:
                raise unknown(name, given, known)
        if "ethos-u" not in self.format:
            for name, usual in (("target", TARGET), ("memory", MEMORY), ("dense", None)):
                if getattr(self, name) != usual:
                    raise InputError(
                        f"--{name} is for --format ethos-u, which is not asked for: leave it out, or add the format"
                    )
        device = usable_device(self.device)
        finished = load_run(self.run, device=device, data_dir=self.data_dir)
        dense = None if self.dense is None else load_run(self.dense, device=device, data_dir=self.data_dir)
        out = self.out or self.run / "export"
        console = Console(file=sys.stdout)  # which goes on while packages are kept from printing
        progress = Progress(console, "exporting", len(self.format))

        def show(text: str) -> None:
            console.print(text, highlight=False, soft_wrap=True)

        def written(name: str, form: dict[str, Any]) -> None:
            progress.advance()
            show(line(name, form))

        edge = EdgeOptions(self.target, self.memory, dense, lambda stage: progress.update(note=stage))
        with progress if set(self.format) & set(INT8_FORMS) else contextlib.nullcontext():  # which take minutes
            record = export(finished, self.format, out, images=self.images, edge=edge, report=written)
        run = record["run"]
        show(
            f"the run itself has {scored(run)} on {run['images']} test {finished.task.unit}; {out / RECORD} has it all"
        )
