"""The pages of a run, a comparison, a measurement and a landscape, each one HTML file beside what it reports on."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flatsparse.common.masks_file import load_masks
from flatsparse.experiments.bench.results import Table as BenchTable
from flatsparse.experiments.bench.sparse_picture import speeds
from flatsparse.experiments.bench.suite import NOTES, Bench
from flatsparse.experiments.compare import Comparison
from flatsparse.experiments.comparison_table import Table
from flatsparse.experiments.evaluate import text as evaluation
from flatsparse.experiments.evaluate.after_picture import after_picture
from flatsparse.experiments.evaluate.after_table import AfterTable
from flatsparse.experiments.evaluate.settings import Evaluation
from flatsparse.experiments.labels import label
from flatsparse.experiments.landscape import pictures, text
from flatsparse.experiments.landscape.settings import KINDS, Kind, Landscape
from flatsparse.experiments.metric import ACCURACY
from flatsparse.experiments.report import figures, html
from flatsparse.experiments.report.columns import ACCURACY as SCORES
from flatsparse.experiments.report.columns import COST, columns, columns_of
from flatsparse.experiments.report.flags import flags
from flatsparse.experiments.report.sentences import comparison_sentences, run_sentences
from flatsparse.experiments.run import probe
from flatsparse.experiments.run.config import ResolvedRun
from flatsparse.experiments.run.folder import read_metrics, read_probes, read_result
from flatsparse.experiments.run.method import removal
from flatsparse.experiments.run.records import EpochRecord, RunResult
from flatsparse.experiments.run.resolve import resolve
from flatsparse.experiments.run.sharpness import SHARPNESS
from flatsparse.experiments.tasks.built_in import built_in
from flatsparse.experiments.tasks.settings import Dataset
from flatsparse.measure.sharpness import definition as sharpness_definition

PAGE = "report.html"
EVALUATION = "evaluation.html"  # in a run's folder, which has the page of the run


def write_run(run: ResolvedRun, result: RunResult, out: Path) -> Path:
    """Write the page of a single run. Returns the file."""
    records, probes = read_metrics(out, result), read_probes(out, result)
    sparsity = f"{result.sparsity.prunable:.1%}"
    subject = f"{result.model} on {run.dataset.title}"
    return html.write(
        out / PAGE,
        "run.html.j2",
        title=f"{subject}: {run.pruning.method} at {sparsity}, sharpness {run.sharpness}",
        sentences=run_sentences(result),
        curves=figures.curves({run.sharpness: [records]}, result.metric if result.scored else None),
        topology=figures.topology(records),
        probes=figures.probes(probes) if probes else None,
        probe_definition=probe.DEFINITION,
        layers=_layers(out),
        settings=_settings(run),
        command=f"flatsparse train {flags(run)} --out {shlex.quote(str(out))}",
        sharpness_definition=_sharpness(run.dataset),
    )


def write_comparison(tables: Sequence[Table], comparison: Comparison, out: Path) -> Path:
    """Write the page of a comparison. Returns the file."""

    def of_table(table: Table) -> dict[str, Any]:
        curves: dict[str, Any] = {
            row.sharpness: [_metrics(out / folder) for folder in row.folders] for row in table.rows
        }
        return {
            "table": table,
            "heading": table.title,
            "sentences": comparison_sentences(table),
            "curves": figures.curves(curves, None if is_accuracy else metric.name),
        }

    run, metric = resolve(comparison.run("none", 0.0, 0.0, 0)), tables[0].metric
    is_accuracy, shown = metric == ACCURACY, columns_of(metric)
    return html.write(
        out / PAGE,
        "comparison.html.j2",
        title=f"Does flatness pay? {run.pruning.method} on {run.dataset.title}, {removal(run.pruning)}",
        model=tables[0].rows[0].results[0].model,
        removal=removal(run.pruning),
        metric=metric,
        is_accuracy=is_accuracy,
        data=run.dataset.title,
        seeds=comparison.seeds,
        kinds={name: SHARPNESS[name] for name in comparison.sharpness},
        parts_of_tables=[of_table(table) for table in tables],
        differences=figures.differences(tables),
        accuracy=columns(SCORES, shown),
        cost=columns(COST, shown),
        label=label,
        ball_radius=tables[0].rows[0].ball_radius,
        sharpness_definition=_sharpness(run.dataset),
        layers=_layers(out / tables[0].row("none").folders[0]),
        settings=_settings(comparison),
        command=f"flatsparse compare {flags(comparison)} --out {shlex.quote(str(out))}",
    )


def write_bench(bench: Bench, tables: Sequence[BenchTable], machine: str, out: Path) -> Path:
    """Write the page of a measurement. Returns the file."""
    gain = "What sparsity gains in time"
    return html.write(
        out / PAGE,
        "bench.html.j2",
        title=gain if bench.what == "sparse" else f"What sharpness awareness costs: {bench.what}",
        tables=tables,
        ratios=figures.ratios,
        speeds=lambda table: speeds([table], bench.survey().axis),
        note=NOTES[bench.kind],
        settings={"machine": machine, **{name.replace("_", " "): value for name, value in bench.as_dict().items()}},
    )


def write_landscape(records: Sequence[Mapping[str, Any]], settings: Landscape, out: Path) -> Path:
    """Write the page of loss surfaces. Returns the file."""

    def of_kind(kind: Kind) -> dict[str, Any]:
        surfaces = [pictures.surface(record, settings.clip, kind) for record in records]
        return {
            "heading": KINDS[kind].capitalize(),
            "sentences": text.sentences(records, kind),
            "surfaces": surfaces,
            "data": _drawn(surfaces),
            "head": text.head(records),
            "rows": text.rows(records, kind),
            "contours": pictures.contours(surfaces),
        }

    runs = shlex.join(map(str, settings.runs))
    return html.write(
        out / PAGE,
        "landscape.html.j2",
        title="The loss around trained networks",
        kinds=[of_kind(kind) for kind in settings.kinds],
        curvature=_curvature(records) if settings.hessian_images else None,
        definition=text.definition(settings, records),
        settings=_settings(settings),
        command=f"flatsparse landscape {runs} {flags(dataclasses.replace(settings, runs=()))} --out {shlex.quote(str(out))}",
    )


def write_evaluation(record: Mapping[str, Any], settings: Evaluation, out: Path) -> Path:
    """Write the page of an evaluation. Returns the file."""
    words = [shlex.join(map(str, settings.runs)), flags(dataclasses.replace(settings, runs=()))]
    corrupted, after = settings.of_corruptions, evaluation.is_after_changes(record)
    return html.write(
        out / EVALUATION,
        "evaluation.html.j2",
        title=_evaluated(corrupted, after),
        picture=after_picture(AfterTable.of(record)) if after else None,
        sentences=evaluation.sentences(record),
        tables=evaluation.shown(record, pages=True),
        note=evaluation.DEFINITION if corrupted else "",
        settings=_settings(settings),
        command=" ".join(word for word in ("flatsparse evaluate", *words, shlex.join(("--out", str(out)))) if word),
    )


def _evaluated(corrupted: bool, after: bool) -> str:
    if after:
        return "Finished runs after changes of their weights"
    return "Accuracy on corrupted images" if corrupted else "Finished runs on their test samples"


def _drawn(surfaces: Sequence[pictures.Surface]) -> dict[str, Any]:
    """The surfaces as plain values, for the script that draws them."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    scale = pictures.scale(surfaces)
    return {
        "low": scale.vmin,
        "high": scale.vmax,
        "colors": [to_hex(color) for color in colormaps[pictures.MAP](np.linspace(0, 1, 64))],
        "surfaces": [{"grid": s.grid.tolist(), "heights": s.heights.round(5).tolist()} for s in surfaces],
    }


def _curvature(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "head": text.CURVATURE,
        "rows": text.curvature(records),
        "gains_head": text.GAINS,
        "gains": text.gains(records),
        "spectra": pictures.spectra(records),
        "definition": text.curvature_definition(records),
    }


def _metrics(folder: Path) -> list[EpochRecord]:
    return read_metrics(folder, read_result(folder))


def _layers(folder: Path) -> list[dict[str, Any]]:
    """The layers of a run with their masks' shapes, active weights and sparsity."""
    masks, _ = load_masks(folder / "masks.safetensors")
    return [
        {"name": name, "shape": mask.shape, "active": int(mask.sum()), "sparsity": 1 - float(mask.float().mean())}
        for name, mask in masks.items()
    ]


def _sharpness(dataset: Dataset) -> str:
    """The definition of sharpness for the loss and the samples of a run."""
    if dataset.task is not None:
        return sharpness_definition("loss", "samples")
    return sharpness_definition() if built_in(dataset.data) is None else sharpness_definition(samples="samples")


def _settings(settings: Any) -> dict[str, Any]:
    """The settings by their names in words, with those of nested groups; a task's own model and data have none."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        flat |= _settings(value) if dataclasses.is_dataclass(value) else {field.name.replace("_", " "): value}
    return {name: value for name, value in flat.items() if not flat.get("task") or name not in ("model", "data")}
