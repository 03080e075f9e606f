"""How a comparison is told: in a table, in sentences, and in a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.table import Table as Grid
from rich.text import Text

from flatsparse.experiments.compare import Row, Table
from flatsparse.experiments.run.records import EpochRecord, RunResult
from flatsparse.experiments.stats import Difference
from flatsparse.experiments.terminal import Console
from flatsparse.measure.flops import Estimate
from flatsparse.sparse.layers import PRESETS

LABELS: dict[str, str] = {
    "none": "plain",
    "sam": "SAM",
    "s2sam": "S²-SAM",
    "random": "random",
    "momentum": "momentum",
    "average": "average",
    "looksam": "LookSAM",
}
COLORS: dict[str, str] = {
    "none": "#666666",
    "sam": "#0072b2",
    "s2sam": "#d55e00",
    "random": "#999999",
    "momentum": "#009e73",
    "average": "#cc79a7",
    "looksam": "#56b4e9",
}


UNLEARNED = (
    "No net does better than naming the commonest class each time, so nothing was learned and nothing can be compared: give more"
    " --epochs, another --lr or less --sparsity."
)


def left_dense(preset: str) -> str:
    """What a choice of layers leaves dense, in words."""
    kept = [kind.__name__.replace("_", " ") for kind in PRESETS[preset]]
    return f"all layers but {', '.join(kept)}" if kept else "all layers"


def layer_table(found: Estimate) -> str:
    """What an estimate tells of every layer and of the whole, as plain text that can be piped on."""
    width = max(len(layer.name) for layer in found.layers)
    rows = [f"{'layer':{width}}  {'shape':>14}  {'live':>10}  {'sparsity':>8}  {'FLOPs':>9}  {'dense':>9}"]
    for x in found.layers:
        sparsity = f"{x.sparsity:8.2%}" if x.chosen else "   dense"
        shape = "x".join(map(str, x.shape))
        rows.append(f"{x.name:{width}}  {shape:>14}  {x.active:>10}  {sparsity}  {x.flops:9.3g}  {x.dense_flops:9.3g}")
    return "\n".join(
        [
            *rows,
            f"sparsity {found.sparsity:.4f} of the chosen layers, {found.overall_sparsity:.4f} of all",
            f"inference {found.inference:.4g} FLOPs a sample, {found.inference_ratio:.3f} of dense"
            f" ({found.inference_dense:.4g})",
            f"training {found.step:.4g} FLOPs a sample and step, {found.step_ratio:.3f} of dense, over {found.steps} steps;"
            " SAM takes about twice as many, S²-SAM as many",
        ]
    )


def setting(table: Table) -> str:
    """What a table was measured under, in a few words."""
    return f"{table.label_noise:.0%} wrong labels" if table.label_noise else "clean labels"


def print_tables(tables: Sequence[Table], console: Console) -> None:
    """Print every table with its sentences; all numbers are measured, none is assumed."""
    seeds = len(tables[0].rows[0].accuracies)
    title = f"Test accuracy, mean ± deviation over {seeds} seed{'s' if seeds > 1 else ''}"
    grid = Grid(box=None, pad_edge=False, title=title, title_justify="left")
    grid.add_column("", no_wrap=True)
    for heading in ("test %", "against plain", "train %", "grads", "time", "cos"):
        grid.add_column(heading, justify="right", no_wrap=True)
    for table in tables:
        grid.add_row(Text(setting(table), style="bold"))
        for row in table.rows:
            grid.add_row(*_cells(row, table.learned))
        grid.add_row()
    console.print(grid)
    console.print(
        "against plain: points, paired by seed, ± half of the 95 % interval; grads: gradients a step; time: of a step, as a"
        " ratio to plain (median over seeds); cos: between the gradients of consecutive steps",
        style="dim",
    )
    for table in tables:
        console.print(f"\n{setting(table)[0].upper()}{setting(table)[1:]}", style="bold")
        for sentence in sentences(table):
            console.print(f"- {sentence}", highlight=False)


def _cells(row: Row, learned: bool) -> list[str | Text]:
    spread = "" if math.isnan(row.std) else f" ± {row.std:.2f}"
    d = row.difference
    told = "" if d is None else f"{d.mean:+.2f}" + (f" ± {d.half:.2f}" if d.bounded else "")
    return [
        f" {LABELS[row.sharpness]}" + (f" ρ={row.rho:g}" if row.rho else ""),
        f"{row.mean:.2f}{spread}",
        told if d is None or not learned else _styled(told, d.verdict),
        f"{row.train_accuracy:.1f}",
        f"{row.gradients_per_step:g}",
        f"{row.step_time:.2f}×",
        "" if math.isnan(row.cosine) else f"{row.cosine:+.2f}",
    ]


def _styled(text: str, verdict: str) -> Text:
    return Text(text, style={"helps": "green", "hurts": "red"}.get(verdict, ""))


def sentences(table: Table) -> list[str]:
    """The table in words."""
    if not table.learned:
        return [UNLEARNED]
    told = [_sentence(row) + _edge(row, table) for row in table.rows if row.difference is not None]
    return told + _control(table)


def _sentence(row: Row) -> str:
    d = row.difference
    assert d is not None
    cost = f"{row.gradients_per_step:g} gradient{'s' if row.gradients_per_step != 1 else ''} a step"
    if d.pairs < 2:
        return f"{LABELS[row.sharpness]} (ρ = {row.rho:g}): {d.mean:+.2f} points with one seed, so nothing can be said; {cost}."
    return f"{LABELS[row.sharpness]} (ρ = {row.rho:g}) {_verb(d)}: {d.mean:+.2f} points, 95 % interval {interval(d)}; {cost}."


def _edge(row: Row, table: Table) -> str:
    grid = [float(rho) for rho in table.tried.get(row.sharpness, ())]
    if len(grid) > 1 and row.rho in (min(grid), max(grid)):
        return (
            f" Its ρ is the {'smallest' if row.rho == min(grid) else 'largest'} tried, so a better one may lie outside."
        )
    return ""


def _control(table: Table) -> list[str]:
    d = table.over_random
    if d is None or d.pairs < 2:
        return []
    meaning = {
        "helps": "so the direction matters, not just its length",
        "hurts": "so a random direction is the better one",
        "within noise": "so its direction cannot be told from a random one here",
    }
    return [f"S²-SAM against a random direction: {d.mean:+.2f} points ({interval(d)}), {meaning[d.verdict]}."]


def _verb(d: Difference) -> str:
    return {"helps": "helps", "hurts": "hurts", "within noise": "is within noise"}[d.verdict]


def interval(d: Difference) -> str:
    """A 95 % interval as text."""
    if d.bounded:
        return f"{d.low:+.2f} to {d.high:+.2f}"
    return "one seed" if d.pairs < 2 else "unknown, the seeds are alike"


def differences(tables: Sequence[Table]) -> Figure:
    """Every setting's differences to plain training: each seed a dot, the mean with its 95 % interval."""
    figure = Figure(figsize=(1 + 4.6 * len(tables), 3.2), layout="constrained")
    axes = figure.subplots(1, len(tables), squeeze=False)
    for axis, table in zip(axes[0], tables, strict=True):
        plain = table.row("none")
        told = [row for row in table.rows if row.difference is not None]
        for place, row in enumerate(reversed(told)):
            gaps = [ours - theirs for ours, theirs in zip(row.accuracies, plain.accuracies, strict=True)]
            axis.plot(gaps, [place] * len(gaps), "o", color=COLORS[row.sharpness], alpha=0.35, markersize=5, mew=0)
            d = row.difference
            assert d is not None  # told
            reach = [[d.mean - d.low], [d.high - d.mean]] if d.bounded else [[0.0], [0.0]]
            axis.errorbar([d.mean], [place], xerr=reach, fmt="D", color=COLORS[row.sharpness], capsize=4, markersize=6)
        axis.axvline(0, color="#333333", linewidth=1)
        costs = [f"{row.gradients_per_step:g} grad., {row.step_time:.2f}× time" for row in told]
        names = [f"{LABELS[row.sharpness]}, ρ = {row.rho:g}\n{c}" for row, c in zip(told, costs, strict=True)]
        axis.set_yticks(range(len(told)), names[::-1])
        axis.set_ylim(-0.6, len(told) - 0.4)
        axis.set_xlabel("difference to plain training, points of test accuracy")
        axis.set_title(f"{setting(table)}: plain {plain.mean:.1f} %", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="x", alpha=0.3)
    return figure


def probes(records: Sequence[Mapping[str, Any]]) -> Figure:
    """What was probed, by step: gains along each direction, the Hessian's largest eigenvalue, and the cosine."""
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    rise, curved, turned = figure.subplots(1, 3)
    steps = [record["step"] for record in records]
    style = {"marker": ".", "linewidth": 1.2}
    for name, label, color in (
        ("worst", "worst found", "#333333"),
        ("sam", "own gradient (SAM)", COLORS["sam"]),
        ("previous", "previous gradient (S²-SAM)", COLORS["s2sam"]),
        ("random", "random", COLORS["random"]),
    ):
        rise.plot(steps, [record["gain"][name] for record in records], color=color, label=label, **style)
    rise.set_ylabel(f"gain at ρ = {records[0]['rho']:g}")
    for space, label, dashes in (("all", "all weights", "--"), ("live", "live weights", "-")):
        largest = [record["curvature"][space]["largest"] for record in records]
        curved.plot(steps, largest, dashes, color="#333333", label=label, marker=".", linewidth=1.2)
    curved.set_ylabel("largest eigenvalue")
    turned.plot(steps, [record["cosine"] for record in records], color=COLORS["s2sam"], **style)
    turned.axhline(0, color="#333333", linewidth=1)
    turned.set_ylabel("cosine, previous and own gradient")
    for axis in (rise, curved, turned):
        axis.set_xlabel("step")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
    for axis in (rise, curved):
        axis.legend(frameon=False, fontsize=8)
    return figure


def curves(records: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> Figure:
    """Training loss and validation accuracy by epoch, for each sharpness the mean over its seeds, which are thin lines."""
    figure = Figure(figsize=(9.2, 3.2), layout="constrained")
    for axis, key, label in zip(
        figure.subplots(1, 2),
        ("train_loss", "validation_accuracy"),
        ("training loss", "validation accuracy, %"),
        strict=True,
    ):
        for name, seeds in records.items():
            lines = [[record[key] for record in seed if record[key] is not None] for seed in seeds]
            epochs = [epoch for epoch, record in enumerate(seeds[0], 1) if record[key] is not None]
            if not epochs:
                continue
            for line in lines:
                axis.plot(epochs, line, color=COLORS[name], alpha=0.15, linewidth=0.8)
            mean = [sum(values) / len(values) for values in zip(*lines, strict=True)]
            axis.plot(epochs, mean, color=COLORS[name], label=LABELS[name], marker="o" if len(mean) == 1 else None)
        axis.set_xlabel("epoch")
        axis.set_ylabel(label)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
        if axis.has_data():
            axis.legend(frameon=False)
    return figure


def warnings(record: EpochRecord, before: EpochRecord | None) -> list[str]:
    """What is amiss with the topology after an epoch and was not after the one before it."""
    told = [
        f"layer {name} has collapsed: {share:.0%} of its filters have no live weight; lower --sparsity, or --exclude it"
        for name, share in record.collapsed.items()
        if before is None or name not in before.collapsed
    ]
    if record.churn == 0 and (before is None or before.churn != 0):
        told.append(f"{record.updates} updates of the masks changed nothing; raise --drop-fraction, if it is small")
    return told


def told_of_topology(result: RunResult) -> list[str]:
    """A finished run's topology in sentences."""
    found = result.health
    moved = "Masks never moved" if found.churn is None else f"An update changed {found.churn:.1%} of the live weights"
    told = [
        f"{moved}; {result.exploration:.1%} of the prunable weights were live at some time,"
        f" {found.dead_filters} of {found.filters} filters have none at the end."
    ]
    if found.collapsed:
        told.append(f"Collapsed, with nearly all filters dead: {', '.join(found.collapsed)}.")
    return told


def topology(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Churn, exploration and dead filters by epoch."""
    figure = Figure(figsize=(9.2, 2.6), layout="constrained")
    panels = (
        ("churn", "weights replaced\nan update, %"),
        ("exploration", "weights ever live, %"),
        ("dead_filters", "dead filters, %"),
    )
    for axis, (key, label) in zip(figure.subplots(1, 3), panels, strict=True):
        points = [(record["epoch"], 100 * record[key]) for record in records if record[key] is not None]
        axis.plot([epoch for epoch, _ in points], [value for _, value in points], color="#333333", marker=".")
        axis.set_xlim(0.5, len(records) + 0.5)
        axis.set_ylim(0, 1.1 * max([value for _, value in points], default=0) or 1)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel("epoch" if points else "epoch (no update)")
        axis.set_ylabel(label)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
    return figure
