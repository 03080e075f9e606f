"""The data behind a table's rows: each in words, its runs, and the commands that repeat it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flatsparse.experiments.recipes import recipes
from flatsparse.experiments.report.store import run, surfaces
from flatsparse.experiments.reproduce import pictures
from flatsparse.experiments.reproduce.pictures import front
from flatsparse.experiments.reproduce.text import label, mean, printed, printed_difference, ruled_out
from flatsparse.experiments.reproduce.verdict import VERDICTS
from flatsparse.experiments.stats import Interval


class Cells:
    """The rows of a page, gathered while its tables are written; a run that several tables share is there once."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.cells: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        self._numbers: dict[str, int] = {}

    def add(self, record: Mapping[str, Any], row: Mapping[str, Any], base: Mapping[str, Any] | None) -> int:
        """A row, compared with ``base``. Returns its number."""
        of_runs = "rho" in row  # a reading has no run, and no place that --only could choose
        unit = "seed" if of_runs else "round"
        self.cells.append(
            {
                "title": f"{record['name']}, {record['scale']}: {row['row']}, {row['column']}, {label(row)}",
                "facts": facts(record, row),
                "point": point(record, row),
                "counted": f"{record['metric']}, each {unit}",
                "values": [[f"{unit} {n}", f"{v:.2f}"] for n, v in zip(row["seeds"], row["values"], strict=True)],
                "command": command(record, self.store, f"{row['row']} {row['column']}") if of_runs else None,
                "runs": [self._run(folder) for folder in row["folders"]],
                "base": [self._run(folder) for folder in base["folders"]] if base else [],
            }
        )
        return len(self.cells) - 1

    def _run(self, folder: str) -> int:
        if folder not in self._numbers:
            self._numbers[folder] = len(self.runs)
            self.runs.append(run(self.store / folder))
        return self._numbers[folder]

    def surfaces(self) -> dict[str, dict[str, str]]:
        """The surfaces of the runs that are here."""
        names = {run["folder"] for run in self.runs}
        return {name: surface for name, surface in surfaces(self.store).items() if name in names}


def point(record: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """A row's point in the plot of accuracy against FLOPs, in words; empty where it has none."""
    if row["mean"] is None or not row["also"]:
        return ""
    sign = 1 if record["better"] == "higher" else -1
    drawn = [r for r in record["rows"] if r["column"] == row["column"] and r["mean"] is not None and r["also"]]
    best = front([(cost, sign * value) for cost, value in map(pictures.point, drawn)])
    cost, value = pictures.point(row)
    first = ", which nothing beats" if (cost, sign * value) in best else ""
    return (
        f"{row['row']}, {row['column']}, {label(row)}: {mean(value, row['std'])} ({record['metric']})"
        f" at {cost:.3f} of dense training's FLOPs{first}"
    )


def facts(record: Mapping[str, Any], row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The facts of a row, each with its name and its text."""
    facts = [("measured", f"{measured(row)} ({record['metric']}), n = {len(row['values'])}")]
    p = row["published"]
    facts.append(("published", printed(record, row) + (f" ({p['source']})" if p and p["source"] else "")))
    if p and p["flops"] is not None:
        facts.append(("published FLOPs of training, of dense", f"{p['flops']:.3f}"))
    if d := row["difference"]:
        gap, published = Interval.from_json(d), printed_difference(record, row)
        sure = f"95 % interval {gap.bounds()}" if gap.bounded else "no interval"
        facts.append(("difference to plain", f"{gap.mean:+.2f} ({sure}, n = {gap.n}); published: {published}"))
        if d["p_holm"] is not None:
            facts.append(("p, by Holm's method", f"{d['p_holm']:.3g}"))
        if text := ruled_out(row):
            facts.append(("ruled out, with 95 % confidence", text))
        if d["seeds_needed"] is not None:
            power = f"a difference of {d['effect']:.2f} is found four times in five, if the spread is the same"
            facts.append(("seeds it would take", f"with {d['seeds_needed']}, {power}"))
    if row["verdict"]:
        facts.append(("verdict", f"{row['verdict']}: {VERDICTS[row['verdict']]}"))
    facts += [("same runs as", row["same_runs"])] if row["same_runs"] else []
    facts += [("needs", row["needs"])] if row["needs"] else []
    facts += [("failed", failure) for failure in row["failures"]]
    return facts + (_also(row["also"]) if row["also"] else [])


def measured(row: Mapping[str, Any]) -> str:
    """The mean that was measured, or why there is none."""
    return mean(row["mean"], row["std"]) if row["values"] else "failed" if row["failures"] else "not run"


def _also(also: Mapping[str, Any]) -> list[tuple[str, str]]:
    macro = ", ".join(f"{name} {v:.2f}" for name, v in also["macro"].items() if v is not None)
    steps = ", ".join(f"{level} % after {v:g}" for level, v in also["steps_to"].items() if v is not None)
    score = also.get("scored")  # of a task's runs, which have no accuracies
    if score is None:
        trained = "training accuracy, %", f"{also['train_accuracy']:.2f}, {also['generalization_gap']:.2f} above test"
    else:
        trained = f"training {score}", f"{also['train_accuracy']:.6g}, less test {also['generalization_gap']:+.6g}"
    texts = [
        trained,
        ("macro averages, %", macro),
        ("steps to validation accuracy", "" if score is not None else steps or "never there"),
        ("FLOPs, of dense", f"training {also['flops_train']:.3f}, inference {also['flops_inference']:.3f}"),
        ("sparsity", f"{also['sparsity']:.2%} of the prunable weights"),
        ("time of training", f"{also['seconds']:.1f} s"),
    ]
    return [(name, text) for name, text in texts if text]


def command(record: Mapping[str, Any], store: Path, place: str | None = None) -> str | None:
    """The command that makes a table again, or a place of it; None for a recipe from a user's file, which has no name."""
    if record["name"] not in recipes():
        return None
    words = ["flatsparse", "reproduce", record["name"], "--scale", record["scale"]]
    words += ["--only", place] if place else []
    words += ["--seeds", str(record["seeds"])] if any(row["folders"] for row in record["rows"]) else []
    words += ["--controls"] if record["controls"] else []
    words += ["--at-once", str(record["at_once"])] if record.get("at_once") else []
    words += [] if store == Path("reproduce") else ["--out", str(store)]
    return shlex.join(words)
