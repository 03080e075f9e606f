"""``flatsparse doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.table import Table

from flatsparse.common.errors import InputError
from flatsparse.diagnosis.finding import Finding
from flatsparse.diagnosis.script import examine_script
from flatsparse.experiments.run.ddp import under_torchrun
from flatsparse.experiments.terminal import Console


@dataclass(frozen=True)
class Doctor:
    """Run a training script for some steps, and say what is wrong with its loop."""

    script: tyro.conf.Positional[Path]
    """The script, whose code is then run. What stands behind it is its own, but for --steps."""
    arguments: tyro.conf.Positional[tuple[str, ...]] = ()
    """The script's own arguments."""
    steps: int = 50
    """The optimizer steps after which the script is stopped."""
    strict: bool = False
    """Exit with status 1 if there are findings, for continuous integration. Before the script."""

    def __call__(self) -> int:
        """Print the findings. Returns the exit status."""
        if under_torchrun():
            raise InputError("doctor looks at one process: run it without torchrun")
        seen = examine_script(self.script, self.steps, self.arguments)
        console = Console()
        if seen.findings:
            console.print(_table(seen.findings))
        if seen.problem:
            raise InputError(seen.problem)
        count = len(seen.findings)
        console.print(
            f"{count or 'no'} finding{'' if count == 1 else 's'} in {seen.steps} optimizer step{'' if seen.steps == 1 else 's'}",
            highlight=False,
        )
        return int(self.strict and count > 0)


def _table(findings: tuple[Finding, ...]) -> Table:
    table = Table("line", "what is wrong", "what to do", show_lines=True)
    for finding in findings:
        table.add_row(finding.where or "-", f"{finding.name}: {finding.what}", finding.cure)
    return table
