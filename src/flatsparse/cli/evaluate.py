"""``flatsparse evaluate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from flatsparse.common.errors import InputError
from flatsparse.experiments.evaluate.record import RECORD, evaluate
from flatsparse.experiments.evaluate.settings import Evaluation
from flatsparse.experiments.report import pages
from flatsparse.experiments.report.text import print_evaluation
from flatsparse.experiments.run.ddp import under_torchrun
from flatsparse.experiments.terminal import Console


@dataclass(frozen=True)
class Evaluate:
    """Evaluate finished runs again: on their test samples, or on corrupted images beside clean ones."""

    settings: Annotated[Evaluation, tyro.conf.arg(name="")]
    out: Path | None = None
    """The folder: evaluation.json, evaluation.html. By default that of the run, or the folder evaluation for several."""

    def __call__(self) -> None:
        if under_torchrun():
            raise InputError("evaluate starts its own processes: run it without torchrun, with --jobs")
        runs = self.settings.runs
        out = self.out or (runs[0] if len(runs) == 1 else Path("evaluation"))
        console = Console()
        record = evaluate(self.settings, out, console)
        print_evaluation(record, console)
        page = pages.write_evaluation(record, self.settings, out)
        console.print(f"report: {page}, numbers: {out / RECORD}", highlight=False)
