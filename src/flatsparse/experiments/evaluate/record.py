"""Evaluations of finished runs as records: losses and scores, tables of robustness, and differences image by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flatsparse.common.errors import InputError
from flatsparse.common.json_files import write_json
from flatsparse.experiments.claims import alone_in
from flatsparse.experiments.data.corruptions import MAIN
from flatsparse.experiments.evaluate.after import after_changes
from flatsparse.experiments.evaluate.measure import CLEAN, Kind, corruptions_of, predictions
from flatsparse.experiments.evaluate.settings import ALEXNET, Evaluation
from flatsparse.experiments.progress import Progress
from flatsparse.experiments.robustness import percent
from flatsparse.experiments.robustness_table import ALEXNET as PUBLISHED
from flatsparse.experiments.robustness_table import Reference, RobustnessTable
from flatsparse.experiments.run.config import change
from flatsparse.experiments.run.evaluation import evaluated
from flatsparse.experiments.run.load import Finished, load_run
from flatsparse.experiments.stats import Interval, mean_interval
from flatsparse.experiments.terminal import Console

RECORD = "evaluation.json"
Right = Mapping[Kind, Tensor]


def evaluate(settings: Evaluation, out: Path, console: Console | None = None) -> dict[str, Any]:
    """Evaluate finished runs, write ``evaluation.json`` into a folder, and return what it holds.

    Args:
        settings: what to evaluate on; see ``Evaluation``.
        out: the folder; what has been measured of corruptions is kept in ``pieces`` there, so that a kill costs little.
        console: where progress is shown.

    Raises: InputError for what cannot be evaluated.
    """
    settings, console = settings.resolved(), console or Console(stderr=True)
    runs = [load_run(run, device=settings.device, data_dir=settings.data_dir) for run in settings.measured]
    names = corruptions_of(settings, runs) if settings.of_corruptions else []
    with alone_in(out):
        if settings.of_corruptions:
            parts = _on_corruptions(settings, runs, names, out, console)
        elif settings.after:
            parts = after_changes(settings, runs, out, console)
        else:
            parts = {"runs": _on_tests(settings, runs, console)}
        for entry, run in zip(parts["runs"], runs, strict=False):  # the reference may be one more
            entry |= _about(run)
        record = {"settings": settings.as_dict(), **parts}
        write_json(out / RECORD, record)
    return record


def tables(record: Mapping[str, Any]) -> list[RobustnessTable]:
    """Return the table of each run of a record."""
    return [RobustnessTable(run["clean"], run["by"], run["source"]) for run in record["runs"]]


def reference_of(record: Mapping[str, Any]) -> Reference | None:
    """Return the reference of a record."""
    saved = record["reference"]
    return None if saved is None else Reference(saved["name"], saved["errors"], saved["clean"])


def _about(run: Finished) -> dict[str, Any]:
    """Return what a run is."""
    result = run.result
    return {
        "run": str(run.folder),
        "digest": run.digest,
        **{key: getattr(result, key) for key in ("data", "model", "method", "sharpness", "rho", "seed")},
        "sparsity": result.sparsity.prunable,
        "unit": run.task.unit,
    }


def _on_tests(settings: Evaluation, runs: Sequence[Finished], console: Console) -> list[dict[str, Any]]:
    """Return loss, scores and details of each run on its test samples."""
    splits = [run.task.splits.test for run in runs]
    if settings.images is not None:
        splits = [split.first(settings.images) for split in splits]
    found = []
    with Progress(console, "evaluating", sum(map(len, splits))) as progress:
        for run, split in zip(runs, splits, strict=True):
            own = change(run.run, device=settings.device)
            measured = evaluated(own, run.task, run.model, split, detailed=True, watch=progress.advance)
            if measured is None:
                raise InputError(f"'{run.folder}' has no test samples: there is nothing to evaluate it on")
            found.append(
                {
                    "samples": len(split),
                    "loss": measured.loss,
                    "scores": measured.scores,
                    **measured.details,
                    "recorded": {"loss": run.result.test_loss, "scores": _recorded(run)},
                }
            )
    return found


def _recorded(run: Finished) -> dict[str, float] | None:
    """Return the test scores of a run as its own end measured them."""
    result = run.result
    if result.scored:
        return result.scores
    return None if result.test_accuracy is None else {"accuracy": result.test_accuracy}


def _on_corruptions(
    settings: Evaluation, runs: Sequence[Finished], names: Sequence[str], out: Path, console: Console
) -> dict[str, Any]:
    """Return the tables of robustness of runs, and the differences of all to the first."""
    found = predictions(settings, runs, names, out, console)
    source = f"read from {settings.corrupted}" if settings.corrupted else "made from the test images"
    known = {run.folder: _table(found[run.folder], source) for run in runs}
    reference = _reference(settings, known)
    first, *others = (found[run] for run in settings.runs)
    return {
        "samples": len(first[CLEAN]),
        "reference": None
        if reference is None
        else {
            "name": reference.name,
            "errors": {k: list(v) for k, v in reference.errors.items()},
            "clean": reference.clean,
        },
        "runs": [known[run].as_dict(reference) for run in settings.runs],
        "differences": [_differences(other, first) for other in others],
    }


def _table(right: Right, source: str) -> RobustnessTable:
    by: dict[str, list[float]] = {}
    for (name, severity), own in right.items():
        if (name, severity) != CLEAN:
            by.setdefault(name, []).append(percent(own))
    return RobustnessTable(percent(right[CLEAN]), by, source)


def _reference(settings: Evaluation, known: Mapping[Path, RobustnessTable]) -> Reference | None:
    if settings.reference is None:
        return None
    if settings.reference == ALEXNET:
        return PUBLISHED
    place = Path(settings.reference).resolve()
    return next(table for run, table in known.items() if run.resolve() == place).as_reference(settings.reference)


def _differences(right: Right, base: Right) -> dict[str, Any]:
    """Return the differences in accuracy of a run to another, in points, with intervals over the images.

    Each image is a pair, with the mean over the corruptions and severities that it is shown with: these are no images of their
    own, so that they add nothing to the number of pairs.
    """
    names = list(dict.fromkeys(name for name, _ in right if name != CLEAN[0]))
    gaps = {kind: right[kind].double() - base[kind].double() for kind in right}

    def over(chosen: Sequence[str]) -> dict[str, Any]:
        return _interval([gap for (name, _), gap in gaps.items() if name in chosen]).to_json()

    return {
        "clean": _interval([gaps[CLEAN]]).to_json(),
        "mean": over(names),
        "mean_of_main": over(MAIN) if all(name in names for name in MAIN) else None,
        "by": {name: over([name]) for name in names},
    }


def _interval(gaps: Sequence[Tensor]) -> Interval:
    """Return the mean difference in points, with its interval over images. Raises InputError where their numbers differ."""
    if len({len(gap) for gap in gaps}) > 1:
        raise InputError(
            "corruptions have unequal numbers of images, so that no image can be compared: unpack the set again"
        )
    return mean_interval((100 * torch.stack(list(gaps)).mean(0)).tolist())
