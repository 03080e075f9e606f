"""Reports as one HTML file: readable on a phone, no network needed, pictures inside."""

from __future__ import annotations

import dataclasses
import html
import math
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from flatsparse.common.files import write_atomic
from flatsparse.common.masks_file import load_masks
from flatsparse.experiments.bench import report
from flatsparse.experiments.bench.results import Table as BenchTable
from flatsparse.experiments.compare import Comparison, Row, Table
from flatsparse.experiments.landscape import pictures, telling
from flatsparse.experiments.landscape.settings import KINDS, Landscape
from flatsparse.experiments.landscape.viewer import viewer
from flatsparse.experiments.report import printing
from flatsparse.experiments.report.figures import svg
from flatsparse.experiments.run import probe
from flatsparse.experiments.run.config import ResolvedRun, unasked
from flatsparse.experiments.run.folder import read_metrics, read_probes, read_result
from flatsparse.experiments.run.method import removal
from flatsparse.experiments.run.records import RunResult
from flatsparse.experiments.run.resolve import resolve
from flatsparse.measure.sharpness import DEFINITION

CURVES = "Thick lines are means, thin ones seeds. Training loss is that of the gradients taken, so at w + e where there is an e."
TOPOLOGY = "How much an update replaces, how much was ever tried, and filters that no live weight feeds."
STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 58rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #ddd; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #eee; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #999; }
.helps { color: #00693e; font-weight: 600; } .hurts { color: #b00020; font-weight: 600; }
figure { margin: 1rem 0; } figure svg { width: 100%; height: auto; } figcaption, .note { color: #555; font-size: .9rem; }
pre { background: #f5f5f5; padding: .7rem; overflow-x: auto; font-size: .85rem; white-space: pre-wrap; word-break: break-word; }
"""


def write_comparison(tables: Sequence[Table], comparison: Comparison, out: Path) -> Path:
    """Write a comparison's report. Returns the file."""
    runs = {
        (table.label_noise, row.sharpness, seed): out
        / "runs"
        / f"noise{table.label_noise:g}-{row.sharpness}-seed{seed}"
        for table in tables
        for row in table.rows
        for seed in range(comparison.seeds)
    }
    run = resolve(comparison.run("none", 0.0, 0.0, 0))
    title = f"Does flatness pay? {run.pruning.method} on {run.dataset.data}, {removal(run.pruning)}"
    verdict = [
        f"<h3>{_text(printing.setting(table).capitalize())}</h3>" + _list(printing.sentences(table)) for table in tables
    ]
    curves = {
        (noise, name): [_metrics(runs[noise, name, seed]) for seed in range(comparison.seeds)]
        for noise, name, _ in runs
    }
    parts = [
        f"<p>{_text(_question(comparison))}</p>",
        *verdict,
        _figure(
            printing.differences(tables),
            "Difference to plain training. Small dots are seeds, diamonds means with 95 % intervals.",
        ),
        "<h2>Accuracy</h2>",
        *(_heading(table) + _accuracy(table) for table in tables),
        _note(
            f"In percent, mean ± deviation over {comparison.seeds} seeds; the test set was read once, at the end of each run."
            " The difference to plain training is paired seed by seed, in points."
        ),
        "<h2>Cost and sharpness</h2>",
        *(_heading(table) + _cost(table) for table in tables),
        _note(
            "Step time is the median over seeds of the ratio to plain; cosine is that between the gradients of consecutive"
            f" steps. Sharpness, at radius {tables[0].rows[0].ball_radius:g}: {DEFINITION}."
        ),
        "<h2>Accuracy of every seed</h2>",
        *(_heading(table) + _seeds(table) for table in tables),
        "<h2>Curves</h2>",
        *(
            _heading(table)
            + _figure(
                printing.curves({r.sharpness: curves[table.label_noise, r.sharpness] for r in table.rows}),
                "Means over seeds.",
            )
            for table in tables
        ),
        *_tuning(tables),
        "<h2>Sparsity by layer</h2>",
        _layers(runs[tables[0].label_noise, "none", 0]),
        _note("Of the first plain run; every run has as many live weights."),
        "<h2>What was run</h2>",
        _settings(comparison),
        f"<pre>flatsparse compare {_text(flags(comparison))} --out {_text(str(out))}</pre>",
    ]
    return _write(out / "report.html", title, parts)


def _question(comparison: Comparison) -> str:
    """What was asked, for a reader who has not run it."""
    run = resolve(comparison.run("none", 0.0, 0.0, 0))
    return (
        f"The same network ({run.model}, {removal(run.pruning)}) was trained {comparison.seeds} times on {run.dataset.data}"
        " in each of these ways: plain, where a step takes the gradient at the weights themselves, and sharpness-aware,"
        " where it takes it at a neighbour a distance ρ away, so that training ends where the loss is flat: up this batch's"
        " own gradient (SAM, two gradients a step), up the previous step's (S²-SAM,"
        " one), or in a random direction (one; the control). Nothing else differs: data, their order, initial weights and"
        " masks are equal, seed by seed. Does it classify unseen images better, and what does it cost?"
    )


def write_run(run: ResolvedRun, outcome: RunResult, out: Path) -> Path:
    """Write a single run's report. Returns the file."""
    records, result = [epoch.to_json() for epoch in read_metrics(out, outcome)], outcome.to_json()
    sparsity = f"{result['sparsity']['prunable']:.1%}"
    title = f"{run.model} on {run.dataset.data}: {run.pruning.method} at {sparsity}, sharpness {run.sharpness}"
    flops, seconds = result["flops"], result["seconds"]
    told = [
        f"Test accuracy {result['test_accuracy']:.2f} %, read once at the end;"
        f" training accuracy {result['train_accuracy']:.2f} %.",
        f"{result['gradient_evaluations']} gradients in {result['steps']} steps; {seconds['train']:.1f} s of training,"
        f" {1000 * seconds['step_median']:.1f} ms a step (median), {result['images_per_second']:.0f} images a second.",
        f"Training cost {flops['train'] / flops['train_dense']:.1%} of dense training's FLOPs, inference"
        f" {flops['inference'] / flops['inference_dense']:.1%} of dense inference's,"
        " by count: masked weights are still multiplied.",
        f"The loss rises by {result['ball']['increase']:.4f} within a radius of {result['ball']['radius']:g}.",
        *printing.told_of_topology(outcome),
        "One run says nothing about whether sharpness awareness helps; flatsparse compare does.",
    ]
    parts = [
        _list(told),
        "<h2>Curves</h2>",
        _figure(printing.curves({run.sharpness: [records]}), CURVES),
        "<h2>Topology</h2>",
        _figure(printing.topology(records), TOPOLOGY),
        *_probes(out),
        "<h2>Sparsity by layer</h2>",
        _layers(out),
        "<h2>What was run</h2>",
        _settings(run),
        f"<pre>flatsparse train {_text(flags(run))} --out {_text(str(out))}</pre>",
        _note(f"Sharpness: {DEFINITION}."),
    ]
    return _write(out / "report.html", title, parts)


def write_bench(what: str, note: str, tables: Sequence[BenchTable], about: Mapping[str, object], out: Path) -> Path:
    """Write a measurement's report. Returns the file."""
    parts = []
    for table in tables:
        parts += [f"<h2>{_text(table.title)}</h2>", _list(table.found), _grid(table.head, table.rows)]
        if table.ratios:
            parts.append(_figure(report.picture(table), "Medians with 95 % intervals."))
    settings = [(_text(name.replace("_", " ")), _text(str(value))) for name, value in about.items()]
    parts += [_note(note), "<h2>What was run</h2>", _grid(("setting", "value"), settings)]
    title = "What sparsity gains in time" if what == "sparse" else f"What sharpness awareness costs: {what}"
    return _write(out / "report.html", title, parts)


def write_landscape(records: Sequence[Mapping[str, Any]], settings: Landscape, out: Path) -> Path:
    """Write the report of loss surfaces. Returns the file."""
    parts = []
    for kind in settings.kinds:
        surfaces = [pictures.surface(record, settings.clip, kind) for record in records]
        parts += [
            f"<h2>{_text(KINDS[kind].capitalize())}</h2>",
            _list(telling.sentences(records, kind)),
            viewer(surfaces),
            _note("Drag, or use the arrow keys: all turn together, and share one scale."),
            _grid(telling.head(records), [[_text(cell) for cell in row] for row in telling.rows(records, kind)]),
            _figure(pictures.contours(surfaces), "The same from above; the dot is where the weights are."),
        ]
    if settings.hessian_images:
        tables = ((telling.CURVATURE, telling.curvature(records)), (telling.GAINS, telling.gains(records)))
        parts += [
            "<h2>Curvature at the weights</h2>",
            *(_grid(head, [[_text(cell) for cell in row] for row in rows]) for head, rows in tables),
            _figure(pictures.spectra(records), "How its eigenvalues are spread; dotted, the largest."),
            _note(telling.curvature_definition(records)),
        ]
    command = f"{flags(dataclasses.replace(settings, runs=()))} --out {out}"
    runs = " ".join(str(run) for run in settings.runs)
    parts += [
        "<h2>What was measured</h2>",
        _note(telling.definition(settings, records)),
        _settings(settings),
        f"<pre>flatsparse landscape {_text(runs)} {_text(command)}</pre>",
    ]
    return _write(out / "report.html", "The loss around trained networks", parts)


def flags(settings: Any) -> str:
    """The command-line flags that give these settings."""
    words: list[str] = []
    for field in dataclasses.fields(settings):
        value, default = getattr(settings, field.name), getattr(unasked(settings), field.name)
        if dataclasses.is_dataclass(value):
            words += shlex.split(flags(value))
            continue
        if value == default or value is None:
            continue
        name = field.name.replace("_", "-")
        words.append(f"--no-{name}" if value is False else f"--{name}")
        if isinstance(value, dict):
            words += [str(word) for pair in value.items() for word in pair]
        elif isinstance(value, (tuple, list)):
            words += [str(word) for word in value]
        elif not isinstance(value, bool):
            words.append(str(value))
    return shlex.join(words)


def _write(file: Path, title: str, parts: Iterable[str]) -> Path:
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{STYLE}</style>"
    )
    body = "\n".join([f"<h1>{_text(title)}</h1>", *parts])
    page = f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'
    write_atomic(file, page.encode(errors="replace"))  # a path may be no text
    return file


def _text(text: str) -> str:
    return html.escape(text)


def _list(sentences: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{_text(s)}</li>" for s in sentences) + "</ul>"


def _note(text: str) -> str:
    return f'<p class="note">{_text(text)}</p>'


def _heading(table: Table) -> str:
    return f"<h3>{_text(printing.setting(table).capitalize())}</h3>"


def _grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _accuracy(table: Table) -> str:
    head = ("", "ρ", "test", "difference", "95 % interval", "training", "validation")
    rows = []
    for row in table.rows:
        d = row.difference
        style = d.verdict.replace(" ", "-") if d and table.learned else ""
        told = (
            [f'<span class="{style}">{text}</span>' for text in (f"{d.mean:+.2f}", printing.interval(d))]
            if d
            else ["", ""]
        )
        spread = "" if math.isnan(row.std) else f" ± {row.std:.2f}"
        validation = "" if row.validation_accuracy is None else f"{row.validation_accuracy:.1f}"
        rows.append([*_name(row), f"{row.mean:.2f}{spread}", *told, f"{row.train_accuracy:.1f}", validation])
    return _grid(head, rows)


def _cost(table: Table) -> str:
    head = ("", "ρ", "gradients a step", "step time", "its range", "cosine", "sharpness")
    rows = []
    for row in table.rows:
        times = f"{row.step_time:.2f}", f"{min(row.step_times):.2f} to {max(row.step_times):.2f}"
        cosine = "" if math.isnan(row.cosine) else f"{row.cosine:+.2f}"
        rows.append([*_name(row), f"{row.gradients_per_step:g}", *times, cosine, f"{statistics.fmean(row.ball):.3f}"])
    return _grid(head, rows)


def _name(row: Row) -> tuple[str, str]:
    return printing.LABELS[row.sharpness], f"{row.rho:g}" if row.rho else ""


def _seeds(table: Table) -> str:
    count = len(table.rows[0].accuracies)
    return _grid(
        ("", *(f"seed {seed}" for seed in range(count))),
        [(printing.LABELS[row.sharpness], *(f"{accuracy:.2f}" for accuracy in row.accuracies)) for row in table.rows],
    )


def _tuning(tables: Sequence[Table]) -> list[str]:
    if not any(table.tried for table in tables):
        return []
    parts = [
        "<h2>How each ρ was chosen</h2>",
        '<p class="note">Validation accuracy, in percent, on other seeds; the highest was taken.</p>',
    ]
    for table in tables:
        grid = next(iter(table.tried.values()))
        rows = [(printing.LABELS[name], *(f"{a:.1f}" for a in tried.values())) for name, tried in table.tried.items()]
        parts.append(_heading(table) + _grid(("", *(f"ρ = {rho}" for rho in grid)), rows))
    return parts


def _metrics(folder: Path) -> list[dict[str, Any]]:
    return [epoch.to_json() for epoch in read_metrics(folder, read_result(folder))]


def _probes(folder: Path) -> list[str]:
    records = read_probes(folder)
    if not records:
        return []
    figure = _figure(printing.probes(records), "Every dot is one look at the loss around the weights.")
    return ["<h2>Around the weights</h2>", figure, _note(f"Seen: {probe.DEFINITION}.")]


def _layers(folder: Path) -> str:
    masks, _ = load_masks(folder / "masks.safetensors")
    rows = [
        (_text(name), "×".join(map(str, mask.shape)), f"{int(mask.sum()):,}", f"{1 - float(mask.float().mean()):.2%}")
        for name, mask in masks.items()
    ]
    return _grid(("layer", "shape", "live weights", "sparsity"), rows)


def _settings(settings: Any) -> str:
    rows = [
        (_text(f.name.replace("_", " ")), _text(str(getattr(settings, f.name)))) for f in dataclasses.fields(settings)
    ]
    return _grid(("setting", "value"), rows)


def _figure(figure: Figure, caption: str) -> str:
    told = _text(caption)
    return f'<figure role="img" aria-label="{told}">{svg(figure)}<figcaption>{told}</figcaption></figure>'
