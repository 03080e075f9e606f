"""Accuracy against training FLOPs, in one way for pictures and pages."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flatsparse.experiments.labels import color, label, marker
from flatsparse.experiments.metric import Metric
from flatsparse.experiments.plotting import caption, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACROSS = 3


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, value) that no other point beats: none is as cheap or cheaper and better.

    >>> front([(1.0, 50.0), (2.0, 60.0), (3.0, 55.0), (2.0, 58.0)])
    [(1.0, 50.0), (2.0, 60.0)]
    """
    optimal: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not optimal or value > optimal[-1][1]:
            optimal.append((cost, value))
    return optimal


def pareto(rows: Sequence[Mapping[str, Any]], metric: Metric) -> Figure | None:
    """The means of a table against the FLOPs of training, a plot for each column; None of no means."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    drawn = [row for row in rows if row["mean"] is not None and row["also"]]
    columns = list(dict.fromkeys(row["column"] for row in drawn))
    if not columns:
        return None
    down = math.ceil(len(columns) / ACROSS)
    figure = Figure(figsize=(0.6 + 3.4 * min(len(columns), ACROSS), 0.6 + 3.0 * down), layout="constrained")
    axes = figure.subplots(down, min(len(columns), ACROSS), squeeze=False).ravel()
    for axis, column in zip(axes, columns, strict=False):
        draw_pareto(axis, [row for row in drawn if row["column"] == column], metric.sign)
        axis.set_title(caption(column), fontsize=9)
        axis.tick_params(labelsize=7)
    for axis in axes[len(columns) :]:
        axis.set_axis_off()
    marks = [Line2D([], [], **style(row), label=name) for name, row in kinds(drawn).items()]
    axes[0].legend(handles=marks, frameon=False, fontsize=7)
    figure.supxlabel("FLOPs of training, as a share of one dense training", fontsize=9)
    figure.supylabel(caption(metric.name), fontsize=9)
    return figure


def draw_pareto(axis: Axes, rows: Sequence[Mapping[str, Any]], sign: int, ids: Sequence[str] = ()) -> None:
    """Draw means against the FLOPs of training, the best at each cost joined.

    Args:
        axis: drawn on.
        rows: all have a mean and FLOPs.
        sign: 1 where more is better, else -1.
        ids: of the marks in an SVG, one for each row, or none.
    """
    best = [(cost, sign * value) for cost, value in front([(cost, sign * value) for cost, value in map(point, rows)])]
    axis.plot([cost for cost, _ in best], [value for _, value in best], "-", color="#888888", zorder=0)
    for row, gid in itertools.zip_longest(rows, ids):
        (mark,) = axis.plot(*point(row), **style(row), clip_on=False)
        if gid is not None:
            mark.set_gid(gid)
    axis.set_xscale("log")
    plain(axis, "y")


def point(row: Mapping[str, Any]) -> tuple[float, float]:
    """The FLOPs of training and the mean of a row."""
    return row["also"]["flops_train"], row["mean"]


def kinds(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """One row of each mark that rows have, by its name in a legend."""
    ends = ("", " (control)")
    return {label(row["sharpness"]) + ends[bool(row["control"])]: row for row in rows}


def style(row: Mapping[str, Any]) -> dict[str, Any]:
    """The mark of a row: the shape and color are those of its sharpness; a control is a cross."""
    return {
        "marker": "x" if row["control"] else marker(row["sharpness"]),
        "color": color(row["sharpness"]),
        "markersize": 6,
        "markeredgewidth": 1.5,
        "linestyle": "none",
    }
