"""``flatsparse evaluate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from flatsparse.common.errors import InputError
from flatsparse.experiments.evaluate.after_picture import PICTURE, after_picture
from flatsparse.experiments.evaluate.after_table import AfterTable
from flatsparse.experiments.evaluate.record import RECORD, evaluate
from flatsparse.experiments.evaluate.settings import Evaluation
from flatsparse.experiments.evaluate.text import is_after_changes
from flatsparse.experiments.plotting import save
from flatsparse.experiments.report import pages
from flatsparse.experiments.report.text import print_evaluation
from flatsparse.experiments.run.ddp import under_torchrun
from flatsparse.experiments.terminal import Console


@dataclass(frozen=True)
class Evaluate:
    """Evaluate finished runs again: on their test samples, on corrupted images, or after changes of their weights."""

    settings: Annotated[Evaluation, tyro.conf.arg(name="")]
    out: Path | None = None
    """The folder of evaluation.json, evaluation.html, with --after a picture. By default the run's, or evaluation."""

    def __call__(self) -> None:
        if under_torchrun():
            raise InputError("evaluate starts its own processes: run it without torchrun, with --jobs")
        runs = self.settings.runs
        out = self.out or (runs[0] if len(runs) == 1 else Path("evaluation"))
        console = Console()
        record = evaluate(self.settings, out, console)
        print_evaluation(record, console)
        if is_after_changes(record):
            save(after_picture(AfterTable.of(record)), out / PICTURE)
        page = pages.write_evaluation(record, self.settings, out)
        console.print(f"report: {page}, numbers: {out / RECORD}", highlight=False)
