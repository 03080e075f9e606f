"""``flatsparse report``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flatsparse.experiments.recipes.recipe import Scale
from flatsparse.experiments.report.store import records
from flatsparse.experiments.report.tables import write
from flatsparse.experiments.report.text import print_record
from flatsparse.experiments.terminal import Console


@dataclass(frozen=True)
class Report:
    """Show the tables reproduced so far beside the published numbers, as text and as one HTML page."""

    store: Path = Path("reproduce")
    """The folder that flatsparse reproduce wrote to."""
    scale: Scale | None = None
    """Only tables of this scale. By default all."""
    only: tuple[str, ...] = ()
    """Only these tables, by name, e.g. table1 sweep."""
    out: Path = Path("report.html")
    """The HTML page to write; one self-contained file."""

    def __call__(self) -> None:
        tables, console = records(self.store, self.scale, self.only), Console()
        page = write(tables, self.store, self.out)
        for record in tables:
            print_record(record, console)
            console.print()
        console.print(f"report: {page}", highlight=False)
