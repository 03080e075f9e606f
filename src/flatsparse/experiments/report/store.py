"""The store of ``flatsparse reproduce`` as reports read it: tables, their runs, and surfaces measured around them."""

from __future__ import annotations

import base64
import io
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from flatsparse.common.errors import InputError, unknown
from flatsparse.common.files import corrupt_file
from flatsparse.common.json_files import read_json
from flatsparse.common.schema import POSITIVE, NotRequired, schema_error
from flatsparse.experiments.landscape import pictures
from flatsparse.experiments.recipes import recipes
from flatsparse.experiments.recipes.recipe import Scale
from flatsparse.experiments.report.flags import flags
from flatsparse.experiments.report.sentences import topology_sentences
from flatsparse.experiments.reproduce.verdict import LEVEL, VERDICTS
from flatsparse.experiments.run.config import as_json, change
from flatsparse.experiments.run.folder import read_config, read_metrics, read_result
from flatsparse.experiments.run.load import run_of
from flatsparse.experiments.run.records import EpochRecord

SOME, WORD = (float, None), (str, None)
# Verdicts of records made before there was one set of words for all; what contradicts either hurts or helps too little.
EARLIER = {"reproduces": "helps", "consistent with no effect": "within noise", "contradicts": "less than claimed"}
# What is read of a table's record and of surfaces, see schema_error.
EQUIVALENCE = dict.fromkeys(("margin", "p_gain", "p_loss"), float)
ROW = {
    **dict.fromkeys(("row", "column", "sharpness"), str),
    **dict.fromkeys(("control", "needs"), WORD),
    "verdict": ({*VERDICTS, *EARLIER}, None),
    **dict.fromkeys(("mean", "std"), SOME),
    "claim": (int, None),
    "same_runs": NotRequired(WORD),
    "unpaired": int,
    "seeds": [int],
    "values": [float],
    "folders": [str],
    "failures": [str],
    "published": (None, {"value": float, "std": SOME, "flops": SOME, "source": WORD}),
    "difference": (
        None,
        {
            **dict.fromkeys(("mean", "effect"), float),
            **dict.fromkeys(("p_holm", "published"), SOME),
            "interval95": ([None, None], [float, float]),
            "pairs": int,
            "seeds_needed": (int, None),
            "equivalence": NotRequired((None, EQUIVALENCE)),
        },
    ),
    "also": dict,
}
ALSO = {
    **dict.fromkeys(("train_accuracy", "generalization_gap", "flops_inference"), float),
    "flops_train": POSITIVE,
    **dict.fromkeys(("sparsity", "seconds"), float),
    "macro": {str: SOME},
    "steps_to": {str: SOME},
    "scored": NotRequired(str),
}
RECORD = {
    **dict.fromkeys(("name", "title", "source", "metric", "better"), str),
    "scale": set(get_args(Scale)),
    **dict.fromkeys(("comparable", "controls"), bool),
    "notes": [str],
    "said": [str],
    "pictures": [str],
    "data_sets": NotRequired([{"name": str, "source": str}]),
    "at_once": NotRequired((int, None)),
    "seeds": int,
    "rows": [ROW],
}
LANDSCAPE = {
    "settings": {"kinds": [str], "clip": SOME},
    "runs": [{"run": str, "name": str, "grid": [float], "losses": [[SOME]], "ra": {"value": float}, "also": dict}],
}
CURVES = {
    "train_loss": "training loss",
    "train_accuracy": "training accuracy, %",
    "validation_accuracy": "validation accuracy, %",
    "validation_score": "validation score",
    "churn": "weights replaced an update, %",
    "exploration": "weights ever active, %",
    "dead_filters": "dead filters, %",
}
SHARES = {"churn", "exploration", "dead_filters"}
MOST_POINTS = 60  # of a curve; more cannot be seen on a phone
MOST_POINTS_OF_SURFACE = 33  # of a surface, along each direction


def records(store: Path, scale: Scale | None = None, only: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The tables of a store, in the order of the recipes, each from its smallest scale to its largest.

    Args:
        scale: of this scale only.
        only: of these names only.

    Raises: InputError when there is none, for a name that is not there, and for a damaged file.
    """
    scales = list(get_args(Scale))
    files = [file for file in sorted(store.glob("*.json")) if file.stem.rpartition("-")[2] in scales]
    tables = [_record(file) for file in files]
    for name in only:
        if tables and name not in (names := {record["name"] for record in tables}):
            raise unknown("table", name, names)
    chosen = [r for r in tables if scale in (None, r["scale"]) and (not only or r["name"] in only)]
    if not chosen:
        what = "flatsparse reproduce " + (only[0] if only else "table1") + (f" --scale {scale}" if scale else "")
        where = "" if store == Path("reproduce") else f" --out {shlex.quote(str(store))}"
        there = ", ".join(f"{r['name']} ({r['scale']})" for r in tables)
        but = f", only {there}" if there else ""
        raise InputError(f"no such table in '{store}' yet{but}: make one with {what}{where}")
    order = list(recipes())
    return sorted(
        chosen,
        key=lambda r: (
            order.index(r["name"]) if r["name"] in order else len(order),
            r["name"],
            scales.index(r["scale"]),
        ),
    )


def _record(file: Path) -> dict[str, Any]:
    record = read_json(file, RECORD)
    if not record["rows"]:
        raise corrupt_file(file, "it has no rows")
    for number, row in enumerate(record["rows"]):
        row["verdict"] = _verdict(row, record["better"])
        row.setdefault("same_runs", None)  # younger than some records
        odd = schema_error(row["also"], ALSO, f"rows[{number}].also") if row["also"] else None
        if odd is None and len(row["seeds"]) != len(row["values"]):
            odd = f"rows[{number}] has not a value for each seed"
        if odd is not None:
            raise corrupt_file(file, f"{odd}, so it is not of this version")
    names = [*record["pictures"], *(folder for row in record["rows"] for folder in row["folders"])]
    away = next((n for n in names if Path(n).is_absolute() or ".." in Path(n).parts or "\0" in n), None)
    if away is not None:
        raise corrupt_file(file, f"'{away}' is not in the folder")
    return record


def _verdict(row: Mapping[str, Any], better: str) -> str | None:
    """The verdict of a row, in the current words."""
    word, d = row["verdict"], row["difference"]
    if word == "contradicts" and d and (d["p_holm"] or 0.0) < LEVEL and (d["mean"] < 0) == (better == "higher"):
        return "hurts"
    return EARLIER.get(word, word)


def run(folder: Path) -> dict[str, Any]:
    """A run for a page: seed, settings, the command that repeats it, curves and topology; or why it cannot be read."""
    try:
        config, result = read_config(folder), read_result(folder)
        settings = run_of(config["settings"], folder)
        lines = read_metrics(folder, result)
    except InputError as problem:
        return {"folder": folder.name, "problem": str(problem)}
    anywhere = change(settings, data_dir=None)
    threads = f"OMP_NUM_THREADS={config['machine']['threads']} " if settings.runtime.device == "cpu" else ""
    return {
        "folder": folder.name,
        "seed": settings.seed,
        "settings": {name: str(value) for name, value in as_json(anywhere).items() if name not in ("seed", "data_dir")},
        "command": f"{threads}flatsparse train {flags(anywhere)}",
        "out": shlex.quote(folder.name),
        "topology": topology_sentences(result),
        "epochs": [line.epoch for line in thinned(lines)],
        "curves": {name: curve for name in CURVES if (curve := _curve(name, thinned(lines)))},
    }


def thinned(lines: Sequence[Any]) -> Sequence[Any]:
    """At most ``MOST_POINTS`` of a sequence, evenly spaced, its first and last among them.

    >>> thinned(range(5)), len(thinned(range(1000))), thinned(range(1000))[-1]
    (range(0, 5), 60, 999)
    """
    if len(lines) <= MOST_POINTS:
        return lines
    return [lines[round(n * (len(lines) - 1) / (MOST_POINTS - 1))] for n in range(MOST_POINTS)]


def _curve(name: str, epochs: Sequence[EpochRecord]) -> list[float | None] | None:
    values = [getattr(epoch, name) for epoch in epochs]
    if all(value is None for value in values):
        return None
    factor = 100 if name in SHARES else 1
    return [None if value is None or not math.isfinite(value) else float(f"{factor * value:.4g}") for value in values]


def surfaces(store: Path) -> dict[str, dict[str, str]]:
    """The surfaces of every ``landscape.json`` in a folder of the store, by the name of the run's folder, as small pictures."""
    shown: dict[str, dict[str, str]] = {}
    for file in sorted(store.glob("*/landscape.json")):
        record = read_json(file, LANDSCAPE)
        try:
            kind, clip = record["settings"]["kinds"][0], record["settings"]["clip"]
            drawn = {Path(saved["run"]).name: pictures.surface(saved, clip, kind) for saved in record["runs"]}
            low = min(surface.heights.min() for surface in drawn.values())
            high = max(surface.heights[np.isfinite(surface.heights)].max() for surface in drawn.values())
        except (KeyError, IndexError, TypeError, ValueError):
            raise corrupt_file(file, "its losses are no surfaces") from None
        for name, surface in drawn.items():
            text = (
                f"loss {low:.3g} (dark) to {high:.3g} (bright), up to {surface.grid[-1]:g} away;"
                f" roughness Ra {surface.ra:.3f}"
            )
            shown.setdefault(name, {"picture": _heat(surface.heights, low, high), "text": text})
    return shown


def _heat(heights: np.ndarray, low: float, high: float) -> str:
    from matplotlib.image import imsave

    step = math.ceil(len(heights) / MOST_POINTS_OF_SURFACE)
    stream = io.BytesIO()
    finite = np.where(np.isfinite(heights), heights, high)[::step, ::step]
    imsave(stream, finite, vmin=low, vmax=high, cmap=pictures.MAP, format="png")
    return embedded(stream.getvalue())


def embedded(png: bytes) -> str:
    """A picture as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
