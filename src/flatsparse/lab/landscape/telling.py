"""Roughness in a table and in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flatsparse.lab.landscape.measure import Landscape, of_kind


def head(records: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The heading of the table."""
    ranges = [f"Ra to ±{inner['reach']:.2g}" for inner in records[0]["ra"]["by_range"]]
    return (
        "",
        "loss at the weights",
        *ranges,
        "Ra, mean of pairs",
        "95 % interval",
        "against the first",
        "95 % interval",
    )


def rows(records: Sequence[Mapping[str, Any]], kind: str) -> list[tuple[str, ...]]:
    """A row for each run."""
    told = []
    for record in records:
        ra = of_kind(record, kind)["ra"]
        ranges = [f"{inner['value']:.4f}" for inner in ra["by_range"]]
        over = "" if ra["over_first"] is None else _with_half(ra["over_first"], "+")
        told.append((record["name"], f"{record['centre']:.4f}", *ranges, _with_half(ra), over))
    return told


def sentences(records: Sequence[Mapping[str, Any]], kind: str) -> list[str]:
    """What may be said of each run against the first, along the same directions."""
    told = []
    for record in records[1:]:
        over = of_kind(record, kind)["ra"]["over_first"]
        low, high = over["interval95"]
        if low is None:
            verdict = "cannot be compared by one pair of directions with"
        elif low > 0:
            verdict = "is rougher than"
        else:
            verdict = "is smoother than" if high < 0 else "cannot be told from"
        told.append(f"{record['name']} {verdict} {records[0]['name']}: Ra {_with_half(over, '+')}.")
    if len({record["model"] for record in records}) > 1:
        told.append("The networks differ, and so do their directions: differences here are not along the same ones.")
    cut = [f"{of_kind(record, kind)['clipped']:.1%} of {record['name']}" for record in records]
    return [*told, f"Cut at the clip: {', '.join(cut)}."]


def definition(settings: Landscape, records: Sequence[Mapping[str, Any]]) -> str:
    """How the figures were measured, in full."""
    images = sorted({record["images"] for record in records})
    half, coarse = settings.points // 2, records[0]["ra"]["points"]
    cut = "not cut" if settings.clip is None else f"cut at {settings.clip:g}"
    return (
        f"Mean cross-entropy over the first {' or '.join(map(str, images))} training images of each run, labels as trained"
        " on, evaluation mode, no augmentation, along two Gaussian directions whose filters are as long as the network's;"
        f" biases and norms stay. {2 * half + 1} × {2 * half + 1} points on ±{settings.reach:g}. Ra is the mean absolute"
        f" deviation of the losses, {cut}. The mean over {settings.pairs} pairs of directions and the differences, paired by"
        f" directions, are of {coarse} × {coarse} of those points, so the mean need not be near the Ra of all points; ± is half"
        " of Student's 95 % interval."
    )


def _with_half(interval: Mapping[str, Any], sign: str = "") -> str:
    """A mean with half of its interval."""
    high = interval["interval95"][1]
    return f"{interval['mean']:{sign}.4f}" + ("" if high is None else f" ± {high - interval['mean']:.4f}")
