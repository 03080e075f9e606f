"""``flatsparse landscape``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from flatsparse.common.errors import InputError
from flatsparse.experiments.landscape import pictures, settings
from flatsparse.experiments.landscape.measure import measure
from flatsparse.experiments.plotting import save
from flatsparse.experiments.report import pages
from flatsparse.experiments.report.text import print_landscape
from flatsparse.experiments.run.ddp import under_torchrun
from flatsparse.experiments.terminal import Console


@dataclass(frozen=True)
class Landscape:
    """Draw the loss around finished runs, side by side on one scale, and measure how rough it is."""

    settings: Annotated[settings.Landscape, tyro.conf.arg(name="")]
    out: Path = Path("landscape")
    """The folder: landscape.json, pictures and report.html."""
    resume: bool = False
    """Continue in the folder, possibly with other runs; nothing is measured twice."""

    def __call__(self) -> None:
        if under_torchrun():
            raise InputError("landscape starts its own processes: run it without torchrun, with --jobs")
        console = Console()
        records = measure(self.settings, self.out, resume=self.resume, console=console)
        resolved = self.settings.resolved()
        for kind in resolved.kinds:
            surfaces = [pictures.surface(record, resolved.clip, kind) for record in records]
            save(pictures.in_space(surfaces), self.out / f"surface-{kind}.png")
            save(pictures.contours(surfaces), self.out / f"contour-{kind}.png")
        if resolved.hessian_images:
            save(pictures.spectra(records), self.out / "spectrum.png")
        print_landscape(records, resolved, console)
        report = pages.write_landscape(records, resolved, self.out)
        console.print(f"report: {report}, numbers: {self.out / 'landscape.json'}", highlight=False)
