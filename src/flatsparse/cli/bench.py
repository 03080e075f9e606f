"""``flatsparse bench``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from flatsparse.common.errors import InputError
from flatsparse.common.json_files import write_json
from flatsparse.experiments import plotting
from flatsparse.experiments.bench import suite
from flatsparse.experiments.bench.results import Table
from flatsparse.experiments.bench.sparse_picture import speeds
from flatsparse.experiments.claims import alone_in, in_use
from flatsparse.experiments.report import pages
from flatsparse.experiments.report.text import print_bench
from flatsparse.experiments.run.environment import environment
from flatsparse.experiments.terminal import Console


@dataclass(frozen=True)
class Bench:
    """Measure the cost of S²-SAM and SAM over SGD in step time, throughput or memory, or the time that sparsity saves."""

    settings: Annotated[suite.Bench, tyro.conf.arg(name="")]
    out: Path | None = None
    """A folder for bench.json and report.html."""

    def __call__(self) -> None:
        bench = self.settings.resolved()
        bench.check_nets()  # before the folder is touched
        about = environment(device=bench.device)
        with contextlib.nullcontext() if self.out is None else _empty(self.out):
            self._measure(bench, about, Console())

    def _measure(self, bench: suite.Bench, about: dict[str, Any], console: Console) -> None:
        """Measure with resolved settings, print the tables and write them."""
        with suite.torch_threads(bench.threads):
            threads = about["machine"]["threads"] = torch.get_num_threads()
            tables = suite.measure(bench, console, lambda tables: self._write(bench, about, tables))
        where = (
            f"torch {torch.__version__}, {threads} thread{'' if threads == 1 else 's'}, {about['machine']['processor']}"
        )
        where += "; quick, so the figures mean nothing" if bench.quick else ""
        print_bench(tables, suite.NOTES[bench.kind], console)
        console.print(where, highlight=False)
        if self.out is not None:
            page = pages.write_bench(bench, tables, where, self.out)
            said = f"report: {page}, numbers: {self.out / 'bench.json'}"
            if any(table.speeds for table in tables):
                picture = self.out / "speed.png"
                plotting.save(speeds(tables, bench.survey().axis), picture)
                said += f", picture: {picture}"
            console.print(said, highlight=False)

    def _write(self, bench: suite.Bench, about: dict[str, Any], tables: list[Table]) -> None:
        """Write what is measured so far."""
        if self.out is not None:
            cases = [{**table.record, "found": table.sentences} for table in tables]
            record = {"bench": bench.what, "settings": bench.as_dict(), "ran_on": about, "cases": cases}
            write_json(self.out / "bench.json", record)


@contextlib.contextmanager
def _empty(out: Path) -> Iterator[None]:
    """Make a folder, or check that it is empty, before any time is spent on measuring; a context that keeps others out."""
    with alone_in(out):
        if in_use(out):
            raise InputError(f"'{out}' exists and holds something: give another --out")
        yield
