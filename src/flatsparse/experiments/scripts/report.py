"""The report of a comparison of a script: on the terminal, as a picture, and as one HTML file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flatsparse.experiments.labels import label
from flatsparse.experiments.metric import Metric
from flatsparse.experiments.plotting import save
from flatsparse.experiments.report import figures, html
from flatsparse.experiments.report.columns import (
    COST,
    GRADIENTS,
    NAME,
    RANGE,
    RHO,
    STEP_TIME,
    TERMINAL,
    TITLE,
    Column,
    columns,
)
from flatsparse.experiments.report.pages import PAGE
from flatsparse.experiments.report.sentences import differences_in_words
from flatsparse.experiments.report.text import print_compared, print_sentences
from flatsparse.experiments.run.sharpness import SHARPNESS
from flatsparse.experiments.scripts.comparison import ScriptComparison, compare_script
from flatsparse.experiments.scripts.script import Function, Script
from flatsparse.experiments.scripts.table import ArmRow, ArmTable
from flatsparse.experiments.terminal import Console

SCORES = "accuracy"  # the view that the page's first table is


def compare_and_report(
    script: Script | Function, comparison: ScriptComparison, out: Path, *, resume: bool, console: Console
) -> ArmTable:
    """Run a comparison of a script, print its table, and write ``compare.png`` and ``report.html`` beside ``compare.json``."""
    table = compare_script(script, comparison, out, resume=resume, console=console)
    print_compared([table], table.metric.name, columns(TERMINAL, columns_of(table)), console)
    console.print()
    print_sentences(sentences(table), console)
    save(figures.differences([table]), out / "compare.png")
    report = write_page(table, comparison.resolved(), out)
    console.print(f"\nreport: {report}, numbers: {out / 'compare.json'}", highlight=False)
    return table


def sentences(table: ArmTable) -> list[str]:
    """The table in sentences."""
    warned: dict[str, list[str]] = {}
    for row in table.rows:
        for text in row.warnings:
            warned.setdefault(text, []).append(label(row.sharpness))
    return [
        *differences_in_words(table, _corrected),
        *(f"Warning ({', '.join(arms)}): {text}." for text, arms in warned.items()),
    ]


def _corrected(row: ArmRow) -> str:
    p = row.judged and row.judged.p
    return f" Holm's p over all arms is {p:.3f}." if p is not None and len(row.gaps) > 1 else ""


def columns_of(table: ArmTable) -> tuple[Column, ...]:
    """The columns of a table, by its metric; those that no row has a value for are left out."""
    metric = table.metric
    shown = (
        TITLE,
        NAME,
        RHO,
        Column(metric.name, lambda row: _mean(row, metric), "", (TERMINAL, SCORES)),
        Column(
            "against plain",
            lambda row: row.difference,
            lambda d: d.with_half(metric.signed),
            (TERMINAL,),
            note=f"paired by seed, ± half of the 95 % interval; {metric.better} is better",
            judged=True,
        ),
        Column("difference", lambda row: row.difference, lambda d: f"{d.mean:{metric.signed}}", (SCORES,), judged=True),
        Column("95 % interval", lambda row: row.difference, lambda d: d.bounds(metric.signed), (SCORES,), judged=True),
        Column(
            "Holm's p",
            lambda row: row.judged and row.judged.p,
            ".3f",
            (TERMINAL, SCORES),
            note="that there is no difference, corrected over all arms; colors go by it",
        ),
        *(Column(name, _mean_of(name), ".4g", (SCORES,)) for name in table.others),
        GRADIENTS,
        STEP_TIME,
        RANGE,
        Column("steps", lambda row: row.steps, "g", (COST,)),
        Column("seconds", lambda row: row.seconds, ".1f", (TERMINAL, COST), short="s", note="seconds of an arm"),
    )
    return tuple(column for column in shown if any(column.text(row) for row in table.rows))


def _mean(row: ArmRow, metric: Metric) -> str:
    spread = f" ± {metric.text(row.std)}" if len(row.seeds) > 1 else ""
    return metric.text(row.mean) + spread


def _mean_of(name: str) -> Callable[[ArmRow], float | None]:
    return lambda row: row.mean_of(name)


def write_page(table: ArmTable, comparison: ScriptComparison, out: Path) -> Path:
    """Write the page of a comparison of a script. Returns the file."""
    shown = columns_of(table)
    return html.write(
        out / PAGE,
        "script.html.j2",
        title=f"Does flatness pay? {table.script}",
        table=table,
        seeds=comparison.seeds,
        kinds={name: SHARPNESS[name] for name in comparison.sharpness},
        sentences=sentences(table),
        differences=figures.differences([table]),
        scores=columns(SCORES, shown),
        cost=columns(COST, shown),
        label=label,
        settings={name.replace("_", " "): value for name, value in comparison.as_dict().items()},
    )
