"""Small drawings, as SVG: a difference with its interval, and accuracy against FLOPs."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

from flatsparse.experiments.labels import color
from flatsparse.experiments.reproduce.pictures import front
from flatsparse.experiments.reproduce.telling import label, mean

HALF = 60  # of an interval's drawing, in its own units
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 340, 230, 46, 14, 12, 30  # of a plot
# Marks differ in shape as well as in colour, and are about the origin.
SHAPES = {
    "none": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "s2sam": "M0-6.5L6.5 0L0 6.5L-6.5 0z",
    "sam": "M-5-5h10v10h-10z",
}
OTHER = "M0-6L6 5H-6z"
CONTROL = "M-5-5L5 5M5-5L-5 5"


def reach(rows: Sequence[Mapping[str, Any]]) -> float:
    """How far a table's drawings of differences go: a little beyond the largest difference, measured or printed."""
    told = [row["difference"] for row in rows if row["difference"] is not None]
    return 1.25 * max((abs(v) for d in told for v in (d["mean"], d["published"] or 0.0)), default=0.0) or 1.0


def interval(difference: Mapping[str, Any], far: float, comparable: bool) -> str:
    """A line for the interval, a dot for the mean, a diamond for one printed of this metric; an arrow where it goes on."""

    def place(value: float) -> float:
        return round(HALF * max(-1.0, min(1.0, value / far)), 1)

    parts = ['<path d="M0-8V8" stroke="#888"/>']
    low, high = difference["interval95"]
    if low is not None:
        parts.append(f'<path d="M{place(low)} 0H{place(high)}" stroke="currentColor" stroke-width="2"/>')
        if low < -far:
            parts.append(f'<path d="M{-HALF + 5}-4L{-HALF} 0L{-HALF + 5} 4" fill="none" stroke="currentColor"/>')
        if high > far:
            parts.append(f'<path d="M{HALF - 5}-4L{HALF} 0L{HALF - 5} 4" fill="none" stroke="currentColor"/>')
    if comparable and difference["published"] is not None:
        at = place(difference["published"])
        parts.append(f'<path transform="translate({at})" d="M0-6L6 0L0 6L-6 0z" fill="#fff" stroke="#333"/>')
    parts.append(f'<circle cx="{place(difference["mean"])}" r="3.5" fill="currentColor"/>')
    return f'<svg class="interval" viewBox="-66 -9 132 18" aria-hidden="true">{"".join(parts)}</svg>'


def pareto(rows: Sequence[tuple[int, Mapping[str, Any]]], record: Mapping[str, Any]) -> str:
    """A column's means against the FLOPs of training, a share of one dense training, the best at each cost joined.

    Args:
        rows: of one column, each with its number in the page; all have a mean and FLOPs.
        record: the table.
    """
    column, sign = rows[0][1]["column"], 1 if record["better"] == "higher" else -1
    points = [(row["also"]["flops_train"], row["mean"]) for _, row in rows]
    costs, values = [p[0] for p in points], [p[1] for p in points]
    left, right = math.log(min(costs) / 1.15), math.log(max(costs) * 1.15)
    levels = MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(min(values) - 0.05, max(values) + 0.05)

    def x(cost: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (math.log(cost) - left) / (right - left), 1)

    def y(value: float) -> float:
        share = (value - levels[0]) / (levels[-1] - levels[0])
        return round(HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * share, 1)

    parts = [
        f'<path d="M{LEFT} {y(v)}H{WIDTH - RIGHT}" stroke="#e5e5e5"/>'
        f'<text x="{LEFT - 6}" y="{y(v) + 4}" text-anchor="end">{v:g}</text>'
        for v in levels
    ]
    for cost in _costs(min(costs), max(costs)):
        parts.append(f'<text x="{x(cost)}" y="{HEIGHT - 12}" text-anchor="middle">{cost:.3g}×</text>')
    best = [(cost, sign * value) for cost, value in front([(cost, sign * value) for cost, value in points])]
    line = " ".join(f"{x(cost)},{y(value)}" for cost, value in best)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#888" stroke-width="2"/>')
    # One stop of the tab key; arrow keys go from point to point, by cost.
    for n, (number, row) in enumerate(sorted(rows, key=lambda told: told[1]["also"]["flops_train"])):
        cost, value = row["also"]["flops_train"], row["mean"]
        told = (
            f"{row['row']}, {column}, {label(row)}: {mean(value, row['std'])} ({record['metric']})"
            f" at {cost:.3f} of dense training's FLOPs{', which nothing beats' if (cost, value) in best else ''}"
        )
        parts.append(
            f'<g class="point" transform="translate({x(cost)} {y(value)})" role="button" tabindex="{-1 if n else 0}"'
            f' data-point="{number}" aria-label="{html.escape(told)}"><circle r="14" fill="transparent"/>{mark(row)}</g>'
        )
    return (
        f'<figure class="plot"><figcaption>{html.escape(column)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="group" aria-label="{html.escape(column)}">{"".join(parts)}</svg></figure>'
    )


def mark(row: Mapping[str, Any]) -> str:
    """The mark of a row: its shape and colour are those of its sharpness; a control is a cross."""
    shade = color(row["sharpness"])
    if row["control"]:
        return f'<path d="{CONTROL}" stroke="{shade}" stroke-width="2"/>'
    return f'<path d="{SHAPES.get(row["sharpness"], OTHER)}" fill="{shade}"/>'


def _costs(low: float, high: float) -> list[float]:
    """Round costs to write at an axis; the two ends where there are fewer than two."""
    every = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    found = [m * 10.0**power for power in every for m in (1, 2, 5) if low / 1.1 <= m * 10.0**power <= high * 1.1]
    return found if len(found) > 1 else list(dict.fromkeys((low, high)))
