"""The command: measures, draws and tells."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table as Grid

from flatsparse.errors import InputError
from flatsparse.lab import page
from flatsparse.lab.landscape import measure, pictures, telling
from flatsparse.lab.team import started_together


@dataclass(frozen=True)
class Landscape(measure.Landscape):
    """Draw the loss around finished runs, side by side on one scale, and measure how rough it is."""

    out: Path = Path("landscape")
    """The folder: landscape.json, pictures and report.html."""
    resume: bool = False
    """Go on in the folder, perhaps with other runs; what is measured is not measured again."""

    def __call__(self) -> None:
        if started_together():
            raise InputError("landscape starts its own processes: run it without torchrun, with --jobs")
        settings = measure.Landscape(**{f.name: getattr(self, f.name) for f in dataclasses.fields(measure.Landscape)})
        console = Console()
        records = measure.measure(settings, self.out, resume=self.resume, console=console)
        settings = settings.resolved()
        for kind in settings.kinds:
            surfaces = [pictures.surface(record, settings.clip, kind) for record in records]
            pictures.in_space(surfaces).savefig(self.out / f"surface-{kind}.png", dpi=160)
            pictures.contours(surfaces).savefig(self.out / f"contour-{kind}.png", dpi=160)
            grid = Grid(
                *telling.head(records), box=None, pad_edge=False, title=measure.KINDS[kind], title_justify="left"
            )
            for row in telling.rows(records, kind):
                grid.add_row(*row)
            console.print(grid, *(f"- {told}" for told in telling.sentences(records, kind)), sep="\n", highlight=False)
        report = page.write_landscape(records, settings, self.out)
        console.print(f"report: {report}, numbers: {self.out / 'landscape.json'}", highlight=False)
