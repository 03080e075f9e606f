"""Reports on the terminal, by rich."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.measure import Measurement
from rich.table import Table as Grid
from rich.text import Text

from flatsparse.experiments.bench.results import Table as BenchTable
from flatsparse.experiments.compared import ComparedTable
from flatsparse.experiments.comparison_table import Table
from flatsparse.experiments.evaluate import text as evaluation
from flatsparse.experiments.landscape import text as landscape
from flatsparse.experiments.landscape.settings import KINDS, Landscape
from flatsparse.experiments.metric import ACCURACY
from flatsparse.experiments.report.columns import TERMINAL, Column, columns, columns_of
from flatsparse.experiments.report.sentences import comparison_sentences
from flatsparse.experiments.reproduce.select import matches
from flatsparse.experiments.reproduce.text import (
    ONCE,
    RULED_OUT,
    UNKNOWN,
    claim,
    counted,
    judged,
    label,
    mean,
    printed,
    printed_difference,
    reasons,
    ruled_out,
)
from flatsparse.experiments.reproduce.verdict import VERDICTS
from flatsparse.experiments.stats import Interval
from flatsparse.experiments.terminal import Console
from flatsparse.measure.estimate import Estimate
from flatsparse.methods.presets import PRESETS

WIDEST = 1000  # characters of a line, where no terminal limits it
# Columns of a recipe's table that only some tasks have, by their heading: the value of a row's means.
MORE: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "F1": lambda also: also.get("macro", {}).get("f1"),
    "gap": lambda also: also.get("generalization_gap"),
}
MEANING = {
    "F1": "macro F1 on the test, %",
    "gap": "generalization gap, the value on training samples less that on test samples",
}
STYLES = {"helps": "green", "less than claimed": "red", "hurts": "red"}  # of verdicts


def left_dense(preset: str) -> str:
    """The layers that a choice leaves dense, in words."""
    dense = [kind.__name__.replace("_", " ") for kind in PRESETS[preset]]
    return f"all layers but {', '.join(dense)}" if dense else "all layers"


def layer_table(estimate: Estimate) -> str:
    """An estimate for every layer and for the whole, as plain text that can be piped on."""
    width = max(len(layer.name) for layer in estimate.layers)
    rows = [f"{'layer':{width}}  {'shape':>14}  {'active':>10}  {'sparsity':>8}  {'FLOPs':>9}  {'dense':>9}"]
    for x in estimate.layers:
        sparsity = f"{x.sparsity:8.2%}" if x.chosen else "   dense"
        shape = "x".join(map(str, x.shape))
        rows.append(f"{x.name:{width}}  {shape:>14}  {x.active:>10}  {sparsity}  {x.flops:9.3g}  {x.dense_flops:9.3g}")
    return "\n".join(
        [
            *rows,
            f"sparsity {estimate.sparsity:.4f} of the chosen layers, {estimate.overall_sparsity:.4f} of all",
            f"inference {estimate.inference:.4g} FLOPs a sample, {estimate.inference_ratio:.3f} of dense"
            f" ({estimate.inference_dense:.4g})",
            f"training {estimate.step:.4g} FLOPs a sample and step, {estimate.step_ratio:.3f} of dense,"
            f" over {estimate.steps} steps; SAM takes about twice as many, S²-SAM as many",
        ]
    )


def print_comparison(tables: Sequence[Table], console: Console) -> None:
    """Print every table with its sentences; all numbers are measured, none is assumed."""
    metric = tables[0].metric
    title = "Test accuracy" if metric == ACCURACY else f"Test {metric.name}"
    print_compared(tables, title, columns(TERMINAL, columns_of(metric)), console)
    for table in tables:
        console.print(f"\n{table.title}", style="bold", highlight=False, markup=False)
        print_sentences(comparison_sentences(table), console)


def print_sentences(sentences: Iterable[str], console: Console) -> None:
    """Print sentences, each with a dash before it."""
    for sentence in sentences:
        console.print(f"- {sentence}", highlight=False)


def print_compared(tables: Sequence[ComparedTable], metric: str, shown: Sequence[Column], console: Console) -> None:
    """Print the rows of tables under one head, and the notes on their columns."""
    seeds = len(tables[0].seeds)
    title = f"{metric}, mean ± deviation over {seeds} seed{'s' if seeds > 1 else ''}"
    grid = Grid(box=None, pad_edge=False, title=title, title_justify="left")
    name, *others = shown
    grid.add_column(name.heading, no_wrap=True)
    for column in others:
        grid.add_column(column.heading, justify="right", no_wrap=True)
    for table in tables:
        grid.add_row(Text(table.heading, style="bold"))
        for row in table.rows:
            cells = [Text(c.text(row), style=STYLES.get(c.style(row, table.is_meaningful), "")) for c in others]
            grid.add_row(f" {name.text(row)}", *cells)
        grid.add_row()
    _print_whole(grid, console)
    console.print("; ".join(f"{column.heading}: {column.note}" for column in others if column.note), style="dim")


def _print_whole(grid: Grid, console: Console) -> None:
    """Print a table in its own width, however narrow the terminal is: else numbers are cut off."""
    grid.width = Measurement.get(console, console.options.update(width=WIDEST), grid).maximum
    console.print(grid, crop=False, highlight=False)


def print_bench(tables: Sequence[BenchTable], note: str, console: Console) -> None:
    """Print the tables of a measurement with their sentences."""
    for table in tables:
        console.print(table.title, style="bold", highlight=False, markup=False)
        grid = Grid(box=None, pad_edge=False)
        for index, heading in enumerate(table.head):
            grid.add_column(heading, justify="right" if index else "left", no_wrap=True)
        for row in table.rows:
            grid.add_row(*row)
        _print_whole(grid, console)
        for sentence in table.sentences:
            console.print(f"- {sentence}", highlight=False, markup=False)
        console.print()
    console.print(note, style="dim")


def print_landscape(records: Sequence[Mapping[str, Any]], settings: Landscape, console: Console) -> None:
    """Print the roughness of surfaces with its sentences, and the curvature where it was measured."""
    for kind in settings.kinds:
        _print_grid(console, KINDS[kind], landscape.head(records), landscape.rows(records, kind))
        for sentence in landscape.sentences(records, kind):
            console.print(f"- {sentence}", highlight=False)
    if settings.hessian_images:
        _print_grid(console, "curvature at the weights", landscape.CURVATURE, landscape.curvature(records))
        _print_grid(console, "rise of the loss a step of ρ away", landscape.GAINS, landscape.gains(records))


def print_evaluation(record: Mapping[str, Any], console: Console) -> None:
    """Print the scores of runs, or their accuracies on corrupted images, with sentences."""
    for heading, (head, rows) in evaluation.shown(record, pages=False):
        _print_grid(console, heading, head, rows)
    print_sentences(evaluation.sentences(record), console)


def _print_grid(console: Console, title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    grid = Grid(*head, box=None, pad_edge=False, title=title, title_justify="left")
    for row in rows:
        grid.add_row(*row)
    console.print(grid, highlight=False)


def print_record(record: Mapping[str, Any], console: Console, only: str | None = None) -> None:
    """Print a recipe's rows, or those of some places, beside the published numbers, then what must be known to read them."""
    rows = [row for row in record["rows"] if matches(f"{row['row']} {row['column']}", only)]
    title = f"{record['title']} ({record['source']}), {record['scale']}: {record['metric']}"
    console.print(title, style="italic", highlight=False, markup=False)
    grid = Grid(box=None, pad_edge=False)
    grid.add_column("", overflow="fold", min_width=12)
    more = [heading for heading, value in MORE.items() if any(value(row["also"]) is not None for row in rows)]
    for heading in ("here", "n", "printed", "difference", "printed", *more):
        grid.add_column(heading, no_wrap=True, justify="right")
    grid.add_column("verdict", overflow="fold", min_width=14)
    before = None
    for row in rows:
        heading = f"{row['row']}, {row['column']}"
        if heading != before:
            grid.add_row(Text(heading, style="bold"))
        grid.add_row(*_record_cells(row, record, more))
        before = heading
    console.print(grid, highlight=False)
    unit = "seed" if any("rho" in row for row in rows) else "round"  # a reading has no run
    sentences = [f"n: {unit}s; difference: to plain, paired by {unit}, ± half of the 95 % interval", UNKNOWN]
    verdicts = counted(rows)
    sentences += [claim(record)] if verdicts else []
    sentences += [ONCE] if any(row["same_runs"] for row in rows) else []
    sentences += [RULED_OUT] if any(map(ruled_out, rows)) else []
    sentences += [f"{name} ({count}): {VERDICTS[name]}" for name, count in verdicts.items()]  # type: ignore[index]
    sentences += [f"{heading}: {MEANING[heading]}" for heading in more]
    sentences += [f"data: {data['name']} from {data['source']}" for data in record.get("data_sets", ())]
    sentences += [*record["notes"], *record["said"]]
    sentences += [f"not run: {reason}" for reason in reasons(rows)]
    for sentence in sentences:
        console.print(f"- {sentence}", style="dim", highlight=False, markup=False)


def _record_cells(row: Mapping[str, Any], record: Mapping[str, Any], more: Sequence[str]) -> list[str | Text]:
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
        *("" if (value := MORE[heading](row["also"])) is None else f"{value:.2f}" for heading in more),
        Text(verdict, style=style),
    ]
