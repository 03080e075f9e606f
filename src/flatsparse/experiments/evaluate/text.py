"""Evaluations as rows of texts and sentences, for the terminal and for pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flatsparse.experiments.data.corruptions import EXTRA, MAIN
from flatsparse.experiments.evaluate import after_table
from flatsparse.experiments.evaluate.record import reference_of, tables
from flatsparse.experiments.labels import label
from flatsparse.experiments.stats import Interval

DEFINITION = (
    "Corruptions and severities are those of Hendrycks & Dietterich (ICLR 2019). CE, of one corruption: the error summed over"
    " severities, divided by the same sum of the reference, in percent; mCE is its mean over the fifteen, and the relative mCE"
    " takes the rises over the clean errors. Accuracies on images made here compare with each other, not with printed ones."
)
ERRORS = {"mce": "mCE", "relative_mce": "relative mCE"}
Table = tuple[list[str], list[list[str]]]  # headings and rows


def is_of_corruptions(record: Mapping[str, Any]) -> bool:
    """Return if a record is of corrupted images."""
    return "differences" in record


def is_after_changes(record: Mapping[str, Any]) -> bool:
    """Return if a record is of changed weights."""
    return "changes" in record


def test_table(record: Mapping[str, Any]) -> Table:
    """Return the losses and scores of runs on their test samples, beside those that their own ends measured."""
    runs = record["runs"]
    scores = list(dict.fromkeys(name for run in runs for name in run["scores"]))
    macro = list(dict.fromkeys(name for run in runs for name in run.get("macro") or ()))
    head = ["run", "samples", "loss", "before", *(text for name in scores for text in (name, "before"))]
    rows = []
    for run in runs:
        before = run["recorded"]
        cells = [run["run"], f"{run['samples']:,}", _number(run["loss"], 4), _number(before["loss"], 4)]
        for name in scores:
            cells += [_number(run["scores"].get(name)), _number((before["scores"] or {}).get(name))]
        rows.append([*cells, *(_number((run.get("macro") or {}).get(name)) for name in macro)])
    return [*head, *(f"macro {name}" for name in macro)], rows


def severity_table(record: Mapping[str, Any], place: int) -> Table:
    """Return the accuracies of a run on each corruption at each severity."""
    table, reference = tables(record)[place], reference_of(record)
    return table.head(reference), table.rows(reference)


def comparison_table(record: Mapping[str, Any]) -> Table:
    """Return the mean accuracies of several runs on each corruption, and their differences to the first."""
    runs, differences = record["runs"], record["differences"]
    numbers = range(1, len(runs) + 1)
    head = ["", *(f"({number})" for number in numbers), *(f"({number}) - (1)" for number in numbers[1:])]

    def row(name: str, values: Sequence[float], gaps: Sequence[Mapping[str, Any]]) -> list[str]:
        return [name, *(f"{value:.2f}" for value in values), *(str(Interval.from_json(gap)) for gap in gaps)]

    rows = [row("clean", [run["clean"] for run in runs], [gap["clean"] for gap in differences])]
    for name in (*MAIN, *EXTRA):
        if name in runs[0]["by"]:
            means = [sum(run["by"][name]) / len(run["by"][name]) for run in runs]
            rows.append(row(name, means, [gap["by"][name] for gap in differences]))
    if runs[0]["mean_of_main"] is not None:
        rows.append(
            row("mean of 15", [run["mean_of_main"] for run in runs], [gap["mean_of_main"] for gap in differences])
        )
    if len(runs[0]["by"]) != len(MAIN) or runs[0]["lacking"]:
        rows.append(
            row(f"mean of {len(runs[0]['by'])}", [run["mean"] for run in runs], [gap["mean"] for gap in differences])
        )
    return head, rows


def shown(record: Mapping[str, Any], *, pages: bool) -> list[tuple[str, Table]]:
    """Return all tables of a record with their headings; on the terminal, of several runs the comparison alone."""
    if is_after_changes(record):
        table = after_table.AfterTable.of(record)
        lost = (
            f"Lost to the change, and how much less than {table.arms[0]}"
            if len(table.arms) > 1
            else "Lost to the change"
        )
        return [(f"Test {table.score} after changes of the weights", table.scores()), (lost, table.losses())]
    if not is_of_corruptions(record):
        return [("On test samples", test_table(record))]
    runs = record["runs"]
    compared = [("Mean accuracy over five severities, %", comparison_table(record))] if len(runs) > 1 else []
    if len(runs) > 1 and not pages:
        return compared
    own = [(_heading(number, run, len(runs)), severity_table(record, number - 1)) for number, run in enumerate(runs, 1)]
    return [*compared, *own]


def sentences(record: Mapping[str, Any]) -> list[str]:
    """Return what a record says, a sentence each."""
    if is_after_changes(record):
        return after_table.sentences(record)
    if not is_of_corruptions(record):
        return ["before: as the end of the run measured it."]
    runs, reference = record["runs"], record["reference"]
    found = [f"{record['samples']:,} test images; corrupted ones are {runs[0]['source']}."]
    for number, run in enumerate(runs, 1):
        mean = run["mean"] if run["mean_of_main"] is None else run["mean_of_main"]
        text = f"{_name(number, run, len(runs))}: {run['clean']:.2f} % on clean images, {mean:.2f} % on corrupted ones"
        errors = [f"{name} {run[key]:.1f} %" for key, name in ERRORS.items() if run.get(key) is not None]
        if errors:
            text += f"; {', '.join(errors)} of {reference['name']}"
        found.append(text + ".")
    if len(runs) > 1:
        found.append(
            "Differences are in points, with 95 % intervals over the images, each a pair: they tell of other images, not of other"
            " seeds."
        )
    if lacking := runs[0]["lacking"]:
        found.append(f"Of the fifteen corruptions that are averaged, not here: {', '.join(lacking)}.")
    return found


def _heading(number: int, run: Mapping[str, Any], count: int) -> str:
    return "Accuracy by severity, %" + (f": ({number}) {run['run']}" if count > 1 else "")


def _name(number: int, run: Mapping[str, Any], count: int) -> str:
    """Return a run's number among several, its folder, and what it is."""
    place = f"({number}) " if count > 1 else ""
    what = f"{run['method']} at {run['sparsity']:.1%}, {label(run['sharpness'])}, seed {run['seed']}"
    return f"{place}{run['run']} ({what})"


def _number(value: float | None, decimals: int = 2) -> str:
    return "" if value is None else f"{value:.{decimals}f}"
