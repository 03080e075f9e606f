"""Accuracy against training FLOPs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from flatsparse.experiments.labels import color, label
from flatsparse.experiments.recipes.recipe import Metric
from flatsparse.experiments.report.figures import caption

ACROSS = 3


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, value) that no other point beats: none is as cheap or cheaper and better.

    >>> front([(1.0, 50.0), (2.0, 60.0), (3.0, 55.0), (2.0, 58.0)])
    [(1.0, 50.0), (2.0, 60.0)]
    """
    kept: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or value > kept[-1][1]:
            kept.append((cost, value))
    return kept


def pareto(rows: Sequence[Mapping[str, Any]], metric: Metric) -> Figure | None:
    """A table's means against the FLOPs of training, a plot for each column, the best at each cost joined; None of none."""
    told = [row for row in rows if row["mean"] is not None and row["also"]]
    columns = list(dict.fromkeys(row["column"] for row in told))
    if not columns:
        return None
    down = math.ceil(len(columns) / ACROSS)
    figure = Figure(figsize=(0.6 + 3.4 * min(len(columns), ACROSS), 0.6 + 3.0 * down), layout="constrained")
    axes = figure.subplots(down, min(len(columns), ACROSS), squeeze=False).ravel()
    for axis, column in zip(axes, columns, strict=False):
        here = [row for row in told if row["column"] == column]
        for row in here:
            cost, shade = row["also"]["flops_train"], color(row["sharpness"])
            axis.plot(cost, row["mean"], "x" if row["control"] else "o", color=shade, markersize=4)
        best = front([(row["also"]["flops_train"], metric.sign * row["mean"]) for row in here])
        axis.plot(
            [cost for cost, _ in best], [metric.sign * value for _, value in best], "-", color="#cccccc", zorder=0
        )
        axis.set_title(caption(column), fontsize=9)
        axis.set_xscale("log")
        axis.tick_params(labelsize=7)
    for axis in axes[len(columns) :]:
        axis.set_axis_off()
    for sharpness in dict.fromkeys(row["sharpness"] for row in told):
        axes[0].plot([], [], "o", color=color(sharpness), label=label(sharpness))
    axes[0].legend(frameon=False, fontsize=7)
    figure.supxlabel("FLOPs of training, as a share of one dense training", fontsize=9)
    figure.supylabel(caption(metric.name), fontsize=9)
    return figure
