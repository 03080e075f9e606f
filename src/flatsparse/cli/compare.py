"""``flatsparse compare``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from flatsparse.common.errors import InputError
from flatsparse.experiments.compare import Comparison, compare
from flatsparse.experiments.plotting import save
from flatsparse.experiments.report import figures, pages
from flatsparse.experiments.report.text import print_comparison
from flatsparse.experiments.run.ddp import under_torchrun
from flatsparse.experiments.terminal import Console


@dataclass(frozen=True)
class Compare:
    """Compare none, SAM, S²-SAM and a random direction on the same sparse training, seed by seed."""

    comparison: Annotated[Comparison, tyro.conf.arg(name="")] = field(default_factory=Comparison)
    out: Path = Path("comparison")
    """The comparison's folder: its runs, compare.json and compare.png."""
    resume: bool = False
    """Continue the comparison in the folder; finished runs are not repeated."""

    def __call__(self) -> None:
        if under_torchrun():
            raise InputError("compare starts its own processes: run it without torchrun, with --jobs")
        console = Console()
        tables = compare(self.comparison, self.out, resume=self.resume, console=console)
        print_comparison(tables, console)
        save(figures.differences(tables), self.out / "compare.png")
        report = pages.write_comparison(tables, self.comparison.resolved(), self.out)
        console.print(f"\nreport: {report}, numbers: {self.out / 'compare.json'}", highlight=False)
