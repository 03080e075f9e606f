"""``flatsparse reproduce``."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from flatsparse.common.errors import InputError
from flatsparse.experiments.recipes import load, recipes
from flatsparse.experiments.recipes.recipe import Recipe
from flatsparse.experiments.report.rehearsal_text import print_rehearsal
from flatsparse.experiments.report.text import print_record
from flatsparse.experiments.reproduce.rehearse import Rehearsal, rehearse, write_rehearsal
from flatsparse.experiments.reproduce.run import Choice, run_recipe
from flatsparse.experiments.run.ddp import under_torchrun
from flatsparse.experiments.terminal import Console


@dataclass(frozen=True)
class Reproduce:
    """Reproduce a table or figure: run its cells, judge its claims, show them beside the published numbers."""

    name: tyro.conf.Positional[str]
    """A recipe (`flatsparse list recipes`), all, or path/to/file.py, whose code is then run."""
    choice: Annotated[Choice, tyro.conf.arg(name="")] = field(default_factory=Choice)
    out: Path = Path("reproduce")
    """The folder that all recipes share: runs, each trained only once, and <name>-<scale>.json."""

    def __call__(self) -> None:
        if under_torchrun():
            raise InputError("reproduce starts its own processes: run it without torchrun, with --jobs")
        everything = list(recipes().values()) if self.name == "all" else [load(self.name)]
        console = Console()
        if not console.is_terminal:
            console = Console(width=120)  # a file is wide enough for a table
        if self.choice.rehearse:
            self._rehearse(everything, console)
            return
        refused = None
        for recipe in everything:
            try:
                record = run_recipe(recipe, self.choice, self.out, console)
            except InputError as problem:  # with all, the others continue
                if len(everything) == 1:
                    raise
                refused = problem
                console.print(f"{recipe.name}: {problem}\n", highlight=False, markup=False)
                continue
            print_record(record, console, self.choice.only)
            console.print(f"numbers: {self.out / f'{recipe.name}-{self.choice.scale}.json'}\n", highlight=False)
            refused = _all_failed(record) or refused
        if refused is not None:
            raise refused

    def _rehearse(self, recipes: Sequence[Recipe], console: Console) -> None:
        """Rehearse recipes and print what came of it. Raises InputError when a run does not run."""
        choice = self.choice
        chosen = Rehearsal(
            scale=choice.scale,
            only=choice.only,
            controls=choice.controls,
            at_once=choice.at_once,
            data_dir=choice.data_dir,
            device=choice.device,
            jobs=choice.jobs,
            gpu_tflops=choice.gpu_tflops,
        )
        record = rehearse(recipes, chosen, console)
        paper = Console(file=io.StringIO(), width=140)
        for where in (console, paper):
            print_rehearsal(record, where)
        file = write_rehearsal(record, paper.file.getvalue(), self.out)  # type: ignore[attr-defined]  # it is ours
        console.print(f"numbers: {file}", highlight=False)
        if failed := [run for run in record["runs"].values() if run["runs"] is False]:
            raise InputError(f"{len(failed)} of {len(record['runs'])} runs do not run, see above: {failed[0]['why']}")


def _all_failed(record: Mapping[str, Any]) -> InputError | None:
    """Return what to raise for a table without a single finished run, such as on a full disk; None for any other."""
    failures = [failure for row in record["rows"] for failure in row["failures"]]
    if not failures or any(row["folders"] for row in record["rows"]):
        return None
    return InputError(f"no run of {record['name']} was finished ({failures[0]}): --retry repeats them")
