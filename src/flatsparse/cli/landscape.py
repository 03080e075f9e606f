"""The command: measures, draws and tells."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table as Grid

from flatsparse.common.errors import InputError
from flatsparse.experiments.landscape import pictures, settings, telling
from flatsparse.experiments.landscape.measure import measure
from flatsparse.experiments.report import pages
from flatsparse.experiments.report.figures import save
from flatsparse.experiments.run.ddp import under_torchrun
from flatsparse.experiments.terminal import Console


@dataclass(frozen=True)
class Landscape(settings.Landscape):
    """Draw the loss around finished runs, side by side on one scale, and measure how rough it is."""

    out: Path = Path("landscape")
    """The folder: landscape.json, pictures and report.html."""
    resume: bool = False
    """Go on in the folder, perhaps with other runs; what is measured is not measured again."""

    def __call__(self) -> None:
        if under_torchrun():
            raise InputError("landscape starts its own processes: run it without torchrun, with --jobs")
        chosen = {f.name: getattr(self, f.name) for f in dataclasses.fields(settings.Landscape)}
        asked, console = settings.Landscape(**chosen), Console()
        records = measure(asked, self.out, resume=self.resume, console=console)
        asked = asked.resolved()
        for kind in asked.kinds:
            surfaces = [pictures.surface(record, asked.clip, kind) for record in records]
            save(pictures.in_space(surfaces), self.out / f"surface-{kind}.png")
            save(pictures.contours(surfaces), self.out / f"contour-{kind}.png")
            _print(console, settings.KINDS[kind], telling.head(records), telling.rows(records, kind))
            for told in telling.sentences(records, kind):
                console.print(f"- {told}", highlight=False)
        if asked.hessian_images:
            save(pictures.spectra(records), self.out / "spectrum.png")
            _print(console, "curvature at the weights", telling.CURVATURE, telling.curvature(records))
            _print(console, "rise of the loss a step of ρ away", telling.GAINS, telling.gains(records))
        report = pages.write_landscape(records, asked, self.out)
        console.print(f"report: {report}, numbers: {self.out / 'landscape.json'}", highlight=False)


def _print(console: Console, title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    grid = Grid(*head, box=None, pad_edge=False, title=title, title_justify="left")
    for row in rows:
        grid.add_row(*row)
    console.print(grid, highlight=False)
