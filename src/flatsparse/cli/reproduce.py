"""``flatsparse reproduce``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import tyro

from flatsparse.common.errors import InputError
from flatsparse.experiments.recipes import load, recipes
from flatsparse.experiments.report.text import print_record
from flatsparse.experiments.reproduce.run import Choice, run_recipe
from flatsparse.experiments.run.ddp import under_torchrun
from flatsparse.experiments.terminal import Console


@dataclass(frozen=True)
class Reproduce(Choice):
    """Reproduce a table or figure: run its cells, judge its claims, tell them beside the published numbers."""

    name: tyro.conf.Positional[str]
    """A recipe (`flatsparse list recipes`), all, or path/to/file.py, whose code is then run."""
    out: Path = Path("reproduce")
    """The folder that all recipes share: runs, which none repeats, and <name>-<scale>.json."""

    def __call__(self) -> None:
        if under_torchrun():
            raise InputError("reproduce starts its own processes: run it without torchrun, with --jobs")
        everything = list(recipes().values()) if self.name == "all" else [load(self.name)]
        console = Console()
        if not console.is_terminal:
            console = Console(width=120)  # a file is wide enough for a table
        choice = Choice(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Choice)})
        refused = None
        for recipe in everything:
            try:
                record = run_recipe(recipe, choice, self.out, console)
            except InputError as problem:  # of all, the others go on
                if len(everything) == 1:
                    raise
                refused = problem
                console.print(f"{recipe.name}: {problem}\n", highlight=False, markup=False)
                continue
            print_record(record, console, self.only)
            console.print(f"numbers: {self.out / f'{recipe.name}-{self.scale}.json'}\n", highlight=False)
        if refused is not None:
            raise refused
