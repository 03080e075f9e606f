"""What a table's cells open: a row in words, its runs, and the commands that repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flatsparse.experiments.recipes import recipes
from flatsparse.experiments.report.store import run, surfaces
from flatsparse.experiments.reproduce.telling import label, mean, printed, printed_difference
from flatsparse.experiments.reproduce.verdict import VERDICTS
from flatsparse.experiments.stats import Interval


class Told:
    """What the page's cells open, gathered while the tables are written; a run that several tables share is there once."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.cells: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        self._places: dict[str, int] = {}

    def add(self, record: Mapping[str, Any], row: Mapping[str, Any], base: Mapping[str, Any] | None) -> int:
        """A row, compared with ``base``. Returns its number."""
        of_runs = "rho" in row  # a reading has no run, and no place that could be asked for
        unit = "seed" if of_runs else "round"
        self.cells.append(
            {
                "title": f"{record['name']}, {record['scale']}: {row['row']}, {row['column']}, {label(row)}",
                "facts": facts(record, row),
                "counted": f"{record['metric']}, each {unit}",
                "values": [[f"{unit} {n}", f"{v:.2f}"] for n, v in zip(row["seeds"], row["values"], strict=True)],
                "command": command(record, self.store, f"{row['row']} {row['column']}") if of_runs else None,
                "runs": [self._run(folder) for folder in row["folders"]],
                "base": [self._run(folder) for folder in base["folders"]] if base else [],
            }
        )
        return len(self.cells) - 1

    def _run(self, folder: str) -> int:
        if folder not in self._places:
            self._places[folder] = len(self.runs)
            self.runs.append(run(self.store / folder))
        return self._places[folder]

    def surfaces(self) -> dict[str, dict[str, str]]:
        """Those of the runs that are told."""
        names = {told["folder"] for told in self.runs}
        return {name: found for name, found in surfaces(self.store).items() if name in names}


def facts(record: Mapping[str, Any], row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A row in words: name and text."""
    told = [("measured", f"{measured(row)} ({record['metric']}), n = {len(row['values'])}")]
    p = row["published"]
    told.append(("published", printed(record, row) + (f" ({p['source']})" if p and p["source"] else "")))
    if p and p["flops"] is not None:
        told.append(("published FLOPs of training, of dense", f"{p['flops']:.3f}"))
    if d := row["difference"]:
        gap, published = Interval.from_json(d), printed_difference(record, row)
        sure = f"95 % interval {gap.bounds()}" if gap.bounded else "no interval"
        told.append(("difference to plain", f"{gap.mean:+.2f} ({sure}, n = {gap.n}); published: {published}"))
        if d["p_holm"] is not None:
            told.append(("p, by Holm's method", f"{d['p_holm']:.3g}"))
        if d["seeds_needed"] is not None:
            found = f"a difference of {d['effect']:.2f} is found four times in five, if the spread is as it is here"
            told.append(("seeds it would take", f"with {d['seeds_needed']}, {found}"))
    if row["verdict"]:
        told.append(("verdict", f"{row['verdict']}: {VERDICTS[row['verdict']]}"))
    told += [("same runs as", row["same_runs"])] if row["same_runs"] else []
    told += [("needs", row["needs"])] if row["needs"] else []
    told += [("failed", failure) for failure in row["failures"]]
    return told + (_also(row["also"]) if row["also"] else [])


def measured(row: Mapping[str, Any]) -> str:
    """What was measured, or that nothing was."""
    return mean(row["mean"], row["std"]) if row["values"] else "failed" if row["failures"] else "not run"


def _also(also: Mapping[str, Any]) -> list[tuple[str, str]]:
    macro = ", ".join(f"{name} {v:.2f}" for name, v in also["macro"].items() if v is not None)
    steps = ", ".join(f"{level} % after {v:g}" for level, v in also["steps_to"].items() if v is not None)
    told = [
        ("training accuracy, %", f"{also['train_accuracy']:.2f}, {also['generalization_gap']:.2f} above test"),
        ("macro averages, %", macro),
        ("steps to validation accuracy", steps or "never there"),
        ("FLOPs, of dense", f"training {also['flops_train']:.3f}, inference {also['flops_inference']:.3f}"),
        ("sparsity", f"{also['sparsity']:.2%} of the prunable weights"),
        ("time of training", f"{also['seconds']:.1f} s"),
    ]
    return [(name, text) for name, text in told if text]


def command(record: Mapping[str, Any], store: Path, place: str | None = None) -> str | None:
    """What makes a table again, or a place of it; a recipe from a file of one's own has no name to be called by."""
    if record["name"] not in recipes():
        return None
    words = ["flatsparse", "reproduce", record["name"], "--scale", record["scale"]]
    words += ["--only", place] if place else []
    words += ["--seeds", str(record["seeds"])] if any(row["folders"] for row in record["rows"]) else []
    words += ["--controls"] if record["controls"] else []
    words += [] if store == Path("reproduce") else ["--out", str(store)]
    return shlex.join(words)
