"""A reproduced recipe as a text table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from flatsparse.lab.reporting import LABELS
from flatsparse.lab.reproduce.making import meets
from flatsparse.lab.reproduce.verdict import VERDICTS

STYLES = {"reproduces": "green", "contradicts": "red"}


def print_record(record: Mapping[str, Any], console: Console, only: str | None = None) -> None:
    """Print a recipe's rows, or those of some places, beside the published numbers, then what must be known to read them."""
    rows = [row for row in record["rows"] if meets(f"{row['row']} {row['column']}", only)]
    title = f"{record['title']} ({record['source']}), {record['scale']}: {record['metric']}"
    grid = Grid(box=None, pad_edge=False, title=title, title_justify="left")
    grid.add_column("", overflow="fold", min_width=20)
    for heading in ("here", "printed", "difference", "printed"):
        grid.add_column(heading, no_wrap=True, justify="right")
    grid.add_column("verdict", overflow="fold", min_width=12)
    before = None
    for row in rows:
        place = f"{row['row']}, {row['column']}"
        if place != before:
            grid.add_row(f"[bold]{escape(place)}[/bold]")
        grid.add_row(*_cells(row))
        before = place
    console.print(grid, highlight=False)
    told = ["difference: to plain, paired by seed, ± half of the 95 % interval"]
    verdicts = Counter(row["verdict"] for row in rows if row["verdict"])
    told += [f"{name} ({count}): {VERDICTS[name]}" for name, count in verdicts.items()]  # type: ignore[index]
    told += [*record["notes"], *record["said"]]
    told += [f"not run: {reason}" for reason in _reasons(rows)]
    for sentence in told:
        console.print(f"- {sentence}", style="dim", highlight=False, markup=False)


def _reasons(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why cells have no value, each reason once with how many cells it holds for."""
    reasons = Counter(row["needs"] for row in rows if row["needs"])
    told = [f"{count} cells need {reason}" for reason, count in reasons.items()]
    failed = Counter(failure.partition(": ")[2] for row in rows for failure in row["failures"])
    return told + [f"{count} runs failed: {reason}" for reason, count in failed.items()]


def _cells(row: Mapping[str, Any]) -> list[str]:
    printed, d = row["published"], row["difference"]
    if d is None:
        gap = gap_printed = ""
    else:
        low, high = d["interval95"]
        gap = f"{d['mean']:+.2f}" + ("" if high is None else f" ± {(high - low) / 2:.2f}")
        gap_printed = "" if d["published"] is None else f"{d['published']:+.2f}"
    style, verdict = STYLES.get(row["verdict"] or ""), row["verdict"] or ""
    return [
        " " + escape(row["control"] or LABELS.get(row["sharpness"], row["sharpness"])),
        _mean(row["mean"], row["std"]),
        "" if printed is None else _mean(printed["value"], printed["std"]),
        gap,
        gap_printed,
        f"[{style}]{verdict}[/{style}]" if style else verdict,
    ]


def _mean(value: float | None, spread: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" + ("" if spread is None else f" ± {spread:.2f}")
