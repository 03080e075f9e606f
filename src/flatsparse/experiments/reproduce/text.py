"""The words for a reproduced recipe: its claim, its verdicts, and what its rows show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flatsparse.experiments import labels
from flatsparse.experiments.equivalence import Equivalence

UNKNOWN = "printed: unknown where we do not know what was printed, if anything was; none for what is ours"
RULED_OUT = (
    "no gain, loss or difference larger than …: ruled out with 95 % confidence, by one-sided tests corrected alike"
)
ONCE = "same runs as another place: one claim with it, tested and counted once"


def claim(record: Mapping[str, Any]) -> str:
    """The claim of every cell, in a sentence."""
    does = "raises" if record["better"] == "higher" else "lowers"
    how_far = "by what was printed where we know it, else at all" if record["scale"] == "paper" else "at all"
    return f"the claim of a cell: S²-SAM {does} {record['metric']}, {how_far}"


def counted(rows: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """The number of claims with each verdict; cells of the same runs make one."""
    return Counter({row["claim"]: row["verdict"] for row in rows if row["verdict"]}.values())


def judged(row: Mapping[str, Any]) -> str:
    """The verdict of a row, if it has one, what it rules out, the seeds it leaves out, and the place that has the same runs."""
    parts = [text for text in (row["verdict"], ruled_out(row)) if text]
    if row["verdict"] and row["unpaired"]:
        parts.append(f"without {row['unpaired']} seed{'' if row['unpaired'] == 1 else 's'} that failed")
    return ", ".join([*parts, *([f"same runs as {row['same_runs']}"] if row["same_runs"] else [])])


def ruled_out(row: Mapping[str, Any]) -> str:
    """The difference to plain that is ruled out, where that says more than the verdict; empty where none is."""
    found = Equivalence.from_json((row["difference"] or {}).get("equivalence"))
    if found is None or {"helps": "loss", "hurts": "gain"}.get(row["verdict"]) == found.excluded:
        return ""
    return found.text()


def printed(record: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """The published value of a row: unknown where we do not know it, none where there can be none."""
    if row["published"] is not None:
        return mean(row["published"]["value"], row["published"]["std"])
    return "none" if row["control"] or record["source"].startswith("ours") else "unknown"


def printed_difference(record: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """The published difference to plain, likewise."""
    published = row["difference"]["published"]
    if published is not None:
        return f"{published:+.2f}"
    return "none" if row["control"] or record["source"].startswith("ours") else "unknown"


def reasons(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The reasons for which cells have no value, each once with the number of its cells."""
    reasons = Counter(row["needs"] for row in rows if row["needs"])
    needed = [f"{count} cells need {reason}" for reason, count in reasons.items()]
    failed = Counter(failure.partition(": ")[2] for row in rows for failure in row["failures"])
    return needed + [f"{count} runs failed: {reason}" for reason, count in failed.items()]


def label(row: Mapping[str, Any]) -> str:
    """The name of a row among those of its place."""
    return row["control"] or labels.label(row["sharpness"])


def mean(value: float | None, spread: float | None) -> str:
    """A mean with its deviation, each where it is known."""
    if value is None:
        return "–"
    return f"{value:.2f}" + ("" if spread is None else f" ± {spread:.2f}")
