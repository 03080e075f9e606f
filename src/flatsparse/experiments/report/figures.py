"""The pictures of reports, by matplotlib."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flatsparse.experiments.bench.results import Table as BenchTable
from flatsparse.experiments.compared import ComparedTable
from flatsparse.experiments.labels import color, label
from flatsparse.experiments.plotting import LINE, caption, plain
from flatsparse.experiments.report.columns import beside
from flatsparse.experiments.reproduce import pictures
from flatsparse.experiments.run.records import EpochRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATIO_COLORS = {
    "wall": "#999999",
    "implied": "#d55e00",
    "throughput": "#0072b2",
    "inference": "#0072b2",
    "training": "#d55e00",
}


def differences(tables: Sequence[ComparedTable]) -> Figure:
    """The differences of every setting to plain training: each seed a dot, the mean with its 95 % interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 4.6 * len(tables), 3.2), layout="constrained")
    axes = figure.subplots(1, len(tables), squeeze=False)
    for axis, table in zip(axes[0], tables, strict=True):
        base = table.row("none")
        compared = [row for row in table.rows if row.difference is not None]
        for height, row in enumerate(reversed(compared)):
            axis.plot(
                row.gaps, [height] * len(row.gaps), "o", color=color(row.sharpness), alpha=0.35, markersize=5, mew=0
            )
            d = row.difference
            assert d is not None  # compared
            reach = d.half if d.bounded else 0.0
            axis.errorbar([d.mean], [height], xerr=reach, fmt="D", color=color(row.sharpness), capsize=4, markersize=6)
        axis.axvline(0, color=LINE, linewidth=1)
        names = [f"{label(row.sharpness)}, ρ = {row.rho:g}\n{beside(row)}" for row in compared]
        axis.set_yticks(range(len(compared)), names[::-1])
        axis.set_ylim(-0.6, len(compared) - 0.4)
        axis.set_title(caption(f"{table.heading}: plain {table.metric.level(base.mean)}"), fontsize=10)
        plain(axis, "x")
    figure.supxlabel(caption(tables[0].metric.axis), fontsize=10)  # longer than short axes
    return figure


def probes(records: Sequence[Mapping[str, Any]]) -> Figure:
    """The probes of a run by step: gains along each direction, the Hessian's largest eigenvalue, and the cosine."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.2), layout="constrained")
    rise, curved, turned = figure.subplots(1, 3)
    steps = [record["step"] for record in records]
    style = {"marker": ".", "linewidth": 1.2}
    for name, title, shade in (
        ("worst", "worst found", LINE),
        ("sam", "own gradient (SAM)", color("sam")),
        ("previous", "previous gradient (S²-SAM)", color("s2sam")),
        ("random", "random", color("random")),
    ):
        rise.plot(steps, [record["gain"][name] for record in records], color=shade, label=title, **style)
    rise.set_ylabel(f"gain at ρ = {records[0]['rho']:g}")
    for space, title, dashes in (("all", "all weights", "--"), ("live", "active weights", "-")):
        largest = [record["curvature"][space]["largest"] for record in records]
        curved.plot(steps, largest, dashes, color=LINE, label=title, marker=".", linewidth=1.2)
    curved.set_ylabel("largest eigenvalue")
    turned.plot(steps, [record["cosine"] for record in records], color=color("s2sam"), **style)
    turned.axhline(0, color=LINE, linewidth=1)
    turned.set_ylabel("cosine, previous and own gradient")
    for axis in (rise, curved, turned):
        axis.set_xlabel("step")
        plain(axis)
    for axis in (rise, curved):
        axis.legend(frameon=False, fontsize=8)
    return figure


def curves(records: Mapping[str, Sequence[Sequence[EpochRecord]]], score: str | None = None) -> Figure:
    """Training loss and validation accuracy, or a task's first score, by epoch.

    For each sharpness the mean over its seeds, which are thin lines.

    Args:
        score: the name of the task's score.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 3.2), layout="constrained")
    for axis, key, title in zip(
        figure.subplots(1, 2),
        ("train_loss", "validation_accuracy" if score is None else "validation_score"),
        ("training loss", "validation accuracy, %" if score is None else caption(f"validation {score}")),
        strict=True,
    ):
        for name, seeds in records.items():
            lines = [[value for record in seed if (value := getattr(record, key)) is not None] for seed in seeds]
            epochs = [epoch for epoch, record in enumerate(seeds[0], 1) if getattr(record, key) is not None]
            if not epochs:
                continue
            for line in lines:
                axis.plot(epochs, line, color=color(name), alpha=0.15, linewidth=0.8)
            mean = [sum(values) / len(values) for values in zip(*lines, strict=True)]
            axis.plot(epochs, mean, color=color(name), label=label(name), marker="o" if len(mean) == 1 else None)
        axis.set_xlabel("epoch")
        axis.set_ylabel(title)
        plain(axis)
        if axis.has_data():
            axis.legend(frameon=False)
    return figure


def topology(records: Sequence[EpochRecord]) -> Figure:
    """Churn, exploration and dead filters by epoch."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9.2, 2.6), layout="constrained")
    panels = (
        ("churn", "weights replaced\nan update, %"),
        ("exploration", "weights ever active, %"),
        ("dead_filters", "dead filters, %"),
    )
    for axis, (key, title) in zip(figure.subplots(1, 3), panels, strict=True):
        points = [(record.epoch, 100 * value) for record in records if (value := getattr(record, key)) is not None]
        axis.plot([epoch for epoch, _ in points], [value for _, value in points], color=LINE, marker=".")
        axis.set_xlim(0.5, len(records) + 0.5)
        axis.set_ylim(0, 1.1 * max([value for _, value in points], default=0) or 1)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel("epoch" if points else "epoch (no update)")
        axis.set_ylabel(title)
        plain(axis)
    return figure


def ratios(table: BenchTable) -> Figure:
    """The ratios of a measurement with their intervals; the line is at 1."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1 + 0.45 * len(table.ratios)), layout="constrained")
    axis = figure.subplots()
    shown = set()
    for index, kinds in enumerate(reversed(table.ratios.values())):
        for offset, (kind, ratio) in enumerate(kinds.items()):
            reach = [[max(0.0, ratio.mean - ratio.low)], [max(0.0, ratio.high - ratio.mean)]]
            label = None if kind in shown else kind
            height = index + 0.2 * offset
            axis.errorbar([ratio.mean], [height], xerr=reach, fmt="D", color=RATIO_COLORS[kind], capsize=3, label=label)
            shown.add(kind)
    axis.axvline(1, color=LINE, linewidth=1)
    axis.set_yticks(range(len(table.ratios)), [caption(name) for name in reversed(table.ratios)])
    axis.set_xlabel("ratio")
    plain(axis, "x")
    axis.legend(frameon=False)
    return figure


def pareto(rows: Sequence[tuple[int, Mapping[str, Any]]], better: str) -> Figure:
    """A column's means against the FLOPs of training; the marks are ``point-<number>``, in the order of their cost.

    Args:
        rows: of one column, each with its number in the page; all have a mean and FLOPs.
        better: higher or lower.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

    figure = Figure(figsize=(4, 2.7), layout="constrained")
    axis = figure.subplots()
    rows = sorted(rows, key=lambda numbered: numbered[1]["also"]["flops_train"])
    ids = [f"point-{number}" for number, _ in rows]
    pictures.draw_pareto(axis, [row for _, row in rows], 1 if better == "higher" else -1, ids)
    costs = [row["also"]["flops_train"] for _, row in rows]
    axis.xaxis.set_major_locator(FixedLocator(_round_costs(min(costs), max(costs))))
    axis.xaxis.set_major_formatter("{x:.3g}×")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axis.margins(0.1, 0.1)
    return figure


def mark(row: Mapping[str, Any]) -> Figure:
    """The mark of a row in a plot, alone."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(0.2, 0.2))
    axis = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axis.plot([0], [0], **pictures.style(row))
    axis.set_axis_off()
    return figure


def _round_costs(low: float, high: float) -> list[float]:
    """Round costs to write at an axis; the two ends where there are fewer than two."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    candidates = (m * 10.0**power for power in powers for m in (1, 2, 5))
    inside = [cost for cost in candidates if low / 1.1 <= cost <= high * 1.1]
    return inside if len(inside) > 1 else list(dict.fromkeys((low, high)))
