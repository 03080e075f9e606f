"""A reproduced recipe as a text table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table as Grid
from rich.text import Text

from flatsparse.experiments import labels
from flatsparse.experiments.reproduce.making import meets
from flatsparse.experiments.reproduce.verdict import VERDICTS
from flatsparse.experiments.stats import Interval
from flatsparse.experiments.terminal import Console

UNKNOWN = "printed: unknown where we do not know what was printed, if anything was; none for what is ours"
ONCE = "same runs as another place: one claim with it, tested and counted once"
STYLES = {"reproduces": "green", "contradicts": "red"}


def print_record(record: Mapping[str, Any], console: Console, only: str | None = None) -> None:
    """Print a recipe's rows, or those of some places, beside the published numbers, then what must be known to read them."""
    rows = [row for row in record["rows"] if meets(f"{row['row']} {row['column']}", only)]
    title = f"{record['title']} ({record['source']}), {record['scale']}: {record['metric']}"
    console.print(title, style="italic", highlight=False, markup=False)
    grid = Grid(box=None, pad_edge=False)
    grid.add_column("", overflow="fold", min_width=12)
    for heading in ("here", "n", "printed", "difference", "printed"):
        grid.add_column(heading, no_wrap=True, justify="right")
    grid.add_column("verdict", overflow="fold", min_width=14)
    before = None
    for row in rows:
        place = f"{row['row']}, {row['column']}"
        if place != before:
            grid.add_row(Text(place, style="bold"))
        grid.add_row(*_cells(row, record))
        before = place
    console.print(grid, highlight=False)
    unit = "seed" if any("rho" in row for row in rows) else "round"  # a reading has no run
    told = [f"n: {unit}s; difference: to plain, paired by {unit}, ± half of the 95 % interval", UNKNOWN]
    verdicts = counted(rows)
    told += [claim(record)] if verdicts else []
    told += [ONCE] if any(row["same_runs"] for row in rows) else []
    told += [f"{name} ({count}): {VERDICTS[name]}" for name, count in verdicts.items()]  # type: ignore[index]
    told += [*record["notes"], *record["said"]]
    told += [f"not run: {reason}" for reason in reasons(rows)]
    for sentence in told:
        console.print(f"- {sentence}", style="dim", highlight=False, markup=False)


def claim(record: Mapping[str, Any]) -> str:
    """What is claimed of every cell, in a sentence."""
    does = "raises" if record["better"] == "higher" else "lowers"
    how_far = "by what was printed where we know it, else at all" if record["scale"] == "paper" else "at all"
    return f"the claim of a cell: S²-SAM {does} {record['metric']}, {how_far}"


def counted(rows: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """How many claims have each verdict; cells of the same runs make one."""
    return Counter({row["claim"]: row["verdict"] for row in rows if row["verdict"]}.values())


def judged(row: Mapping[str, Any]) -> str:
    """A row's verdict, if it has one, which seeds it leaves out, and where else its runs stand."""
    told = [row["verdict"]] if row["verdict"] else []
    if row["verdict"] and row["unpaired"]:
        told.append(f"without {row['unpaired']} seed{'' if row['unpaired'] == 1 else 's'} that failed")
    return ", ".join([*told, *([f"same runs as {row['same_runs']}"] if row["same_runs"] else [])])


def printed(record: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """What was printed for a row: unknown where we do not know it, none where nothing can have been."""
    if row["published"] is not None:
        return mean(row["published"]["value"], row["published"]["std"])
    return "none" if row["control"] or record["source"].startswith("ours") else "unknown"


def printed_difference(record: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """The difference to plain that was printed, likewise."""
    published = row["difference"]["published"]
    if published is not None:
        return f"{published:+.2f}"
    return "none" if row["control"] or record["source"].startswith("ours") else "unknown"


def reasons(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why cells have no value, each reason once with how many cells it holds for."""
    reasons = Counter(row["needs"] for row in rows if row["needs"])
    told = [f"{count} cells need {reason}" for reason, count in reasons.items()]
    failed = Counter(failure.partition(": ")[2] for row in rows for failure in row["failures"])
    return told + [f"{count} runs failed: {reason}" for reason, count in failed.items()]


def _cells(row: Mapping[str, Any], record: Mapping[str, Any]) -> list[str | Text]:
    d = row["difference"]
    if d is None:
        gap = gap_printed = ""
    else:
        gap = Interval.from_json(d).with_half()
        gap_printed = printed_difference(record, row)
    verdict, style = judged(row), STYLES.get(row["verdict"] or "", "")
    return [
        Text(f" {label(row)}"),
        mean(row["mean"], row["std"]),
        str(len(row["values"])),
        printed(record, row),
        gap,
        gap_printed,
        Text(verdict, style=style),
    ]


def label(row: Mapping[str, Any]) -> str:
    """What tells a row from the others of its place."""
    return row["control"] or labels.label(row["sharpness"])


def mean(value: float | None, spread: float | None) -> str:
    """A mean with its deviation, each where it is known."""
    if value is None:
        return "–"
    return f"{value:.2f}" + ("" if spread is None else f" ± {spread:.2f}")
