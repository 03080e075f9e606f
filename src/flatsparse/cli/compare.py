"""``flatsparse compare``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from flatsparse.common.errors import InputError
from flatsparse.experiments.compare import Comparison, compare
from flatsparse.experiments.metric import Better
from flatsparse.experiments.plotting import save
from flatsparse.experiments.report import figures, pages
from flatsparse.experiments.report.text import print_comparison
from flatsparse.experiments.run.ddp import under_torchrun
from flatsparse.experiments.scripts.comparison import ScriptComparison
from flatsparse.experiments.scripts.report import compare_and_report
from flatsparse.experiments.scripts.script import Script
from flatsparse.experiments.terminal import Console


def _script(words: list[str]) -> str:
    """Return a script's name. Raises ValueError for what is none, such as a second number behind --rho."""
    if ".py:" not in words[0]:
        raise ValueError(f"'{words[0]}' is no script: give FILE.py:FUNCTION")
    return words[0]


SCRIPT = PrimitiveConstructorSpec(
    nargs=1,
    metavar="FILE.py:FUNCTION",
    instance_from_str=_script,
    is_instance=lambda value: isinstance(value, str),
    str_from_instance=lambda value: [value],
)


@dataclass(frozen=True)
class Compare:
    """Compare none, SAM, S²-SAM and a random direction on the same sparse training, seed by seed."""

    script: tyro.conf.Positional[Annotated[str, SCRIPT]] = ""
    """A training function of your own, in the place of a data set and a model; its code is then run."""
    comparison: Annotated[Comparison, tyro.conf.arg(name="")] = field(default_factory=Comparison)
    better: Better = "higher"
    """For a script: whether a higher or a lower number is better."""
    threads: int = 1
    """For a script: the threads that torch computes on in each arm."""
    out: Path = Path("comparison")
    """The comparison's folder: its runs, compare.json, compare.png and report.html."""
    resume: bool = False
    """Continue the comparison in the folder; finished runs are not repeated."""

    def __call__(self) -> None:
        if under_torchrun():
            raise InputError("compare starts its own processes: run it without torchrun, with --jobs")
        if not self.script:
            self._compare_settings()
        else:
            comparison = ScriptComparison.of(self.comparison, self.better, self.threads)
            script = Script.named(self.script)
            compare_and_report(script, comparison, self.out, resume=self.resume, console=Console())

    def _compare_settings(self) -> None:
        for name, usual in (("better", "higher"), ("threads", 1)):
            if getattr(self, name) != usual:
                raise InputError(f"--{name} is for a script of your own: leave it out, or give FILE.py:FUNCTION")
        console = Console()
        tables = compare(self.comparison, self.out, resume=self.resume, console=console)
        print_comparison(tables, console)
        save(figures.differences(tables), self.out / "compare.png")
        report = pages.write_comparison(tables, self.comparison.resolved(), self.out)
        console.print(f"\nreport: {report}, numbers: {self.out / 'compare.json'}", highlight=False)
