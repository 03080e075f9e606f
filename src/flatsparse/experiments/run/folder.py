"""The files of a run's folder that are JSON: its configuration, its metrics, its result or why it failed."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flatsparse.common.files import ELSEWHERE, corrupt_file, write_atomic
from flatsparse.common.json_files import read_json, read_json_lines, with_checksum, write_json
from flatsparse.common.schema import NotRequired
from flatsparse.common.tensor_files import checksum_of
from flatsparse.experiments.run.config import FREE
from flatsparse.experiments.run.records import DATA_SET, EPOCH_FORM, RESULT_FORM, EpochRecord, RunResult

CONFIG, RESULT, FAILURE = "config.json", "result.json", "failure.json"
METRICS, PROBES = "metrics.jsonl", "probes.jsonl"
WEIGHTS, MASKS = "model.safetensors", "masks.safetensors"
TIMES = ("images_per_second",)  # in metrics.jsonl
CONFIG_FORM: dict[str, Any] = {
    "settings": dict,
    "versions": dict,
    "machine": {"threads": int},
    "data_set": NotRequired(DATA_SET),
}
FAILURE_FORM: dict[str, Any] = {"reason": str}
PROBE_FORM: dict[str, Any] = {
    "step": int,
    **dict.fromkeys(("rho", "cosine"), float),
    "gain": dict.fromkeys(("worst", "sam", "previous", "random"), float),
    "curvature": {space: {"largest": float} for space in ("all", "live")},
}


def read_config(out: Path) -> dict[str, Any]:
    """Return ``config.json``. Raises InputError when it is damaged."""
    return read_json(out / CONFIG, CONFIG_FORM, cure=ELSEWHERE)


def write_result(out: Path, result: RunResult) -> RunResult:
    """Write ``result.json``, which says that the run is finished, and return it with the hashes of the files beside it."""
    names = (CONFIG, METRICS, PROBES, WEIGHTS, MASKS)
    whole = dataclasses.replace(result, files={name: _hash_of(out / name) for name in names if (out / name).is_file()})
    write_json(out / RESULT, whole.to_json())
    return whole


def read_result(out: Path) -> RunResult:
    """Return the result of a finished run. Raises InputError when it is damaged, or of another run than ``config.json``."""
    result = RunResult.from_json(read_json(out / RESULT, RESULT_FORM))
    if (out / CONFIG).is_file() and not _goes_with(result, out / CONFIG):
        raise corrupt_file(out / RESULT, f"it is of another run than the {CONFIG} beside it")
    return result


def check_goes_with(result: RunResult, *files: Path) -> None:
    """Raise InputError when a file, which is whole, is of another run than the result."""
    for file in files:
        if not _goes_with(result, file):
            raise corrupt_file(file, f"it is of another run than the {RESULT} beside it")


def write_metrics(out: Path, epochs: Iterable[EpochRecord], probes: Iterable[Mapping[str, Any]]) -> None:
    """Write a line an epoch, and if there are probes, a line a probe."""
    _write_lines(out / METRICS, [epoch.to_json() for epoch in epochs])
    if records := list(probes):
        _write_lines(out / PROBES, records)


def write_metrics_again(
    out: Path, result: RunResult, epochs: Iterable[EpochRecord], probes: Iterable[Mapping[str, Any]]
) -> RunResult:
    """Write the lines of a finished run, whose result is then of these, as another version may write others."""
    write_metrics(out, epochs, probes)
    hashes = {name: _hash_of(out / name) for name in (METRICS, PROBES) if (out / name).is_file()}
    if result.files and not result.files.items() >= hashes.items():
        result = dataclasses.replace(result, files={**result.files, **hashes})
        write_json(out / RESULT, result.to_json())
    return result


def read_metrics(out: Path, result: RunResult) -> list[EpochRecord]:
    """Return the epochs of a finished run.

    Raises: InputError when the file is damaged or of another run, or epochs are missing.
    """
    lines = _read_lines(out / METRICS, EPOCH_FORM, result.epochs, "epochs")
    check_goes_with(result, out / METRICS)
    return [EpochRecord.from_json(line) for line in lines]


def read_probes(out: Path, result: RunResult, count: int = 0) -> list[dict[str, Any]]:
    """Return the probes of a finished run, if it has any.

    Raises: InputError when the file is damaged or of another run, or has less than ``count`` probes.
    """
    file = out / PROBES
    if not count and not file.is_file():
        return []
    lines = _read_lines(file, PROBE_FORM, count, "probes")
    check_goes_with(result, file)
    return lines


def write_failure(out: Path, reason: str, problem: BaseException | None = None) -> None:
    """Write down why a run failed, when, and the line it failed at."""
    where = traceback.extract_tb(problem.__traceback__)[-1] if problem else None
    failure = {
        "reason": reason,
        "error": type(problem).__name__ if problem else None,
        "where": f"{Path(where.filename).name}, line {where.lineno}, in {where.name}" if where else None,
        "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / FAILURE, failure)


def read_failure(out: Path) -> str | None:
    """Return why a run failed; None when it did not. Raises InputError when the file is damaged."""
    file = out / FAILURE
    return str(read_json(file, FAILURE_FORM)["reason"]) if file.is_file() else None


def has_diverged(out: Path) -> bool:
    """Return if a run failed because its loss was no longer finite. Raises InputError when its failure is damaged."""
    file = out / FAILURE
    return file.is_file() and read_json(file, FAILURE_FORM).get("error", "Diverged") == "Diverged"  # older ones lack it


def _write_lines(file: Path, records: Iterable[Mapping[str, Any]]) -> None:
    lines = (json.dumps(with_checksum(record)) + "\n" for record in records)
    write_atomic(file, "".join(lines).encode(), durable=False)


def _read_lines(file: Path, form: dict[str, Any], count: int, what: str) -> list[dict[str, Any]]:
    lines = read_json_lines(file, form)
    if len(lines) < count:
        raise corrupt_file(file, f"it has {len(lines)} of {count} {what}")
    return lines


def _goes_with(result: RunResult, file: Path) -> bool:
    """Return if a file is the one that a result was written with, as far as the result says."""
    recorded = (result.files or {}).get(file.name)
    return recorded is None or recorded == _hash_of(file)


def _hash_of(file: Path) -> str:
    """Return a hash of a file's content, which is the same for equal runs; tensor files carry one, which their readers check."""
    if file.suffix == ".safetensors":
        return checksum_of(file)
    if file.name == CONFIG:
        config = read_config(file.parent)
        settings = {name: value for name, value in config["settings"].items() if name not in FREE}
        content: Any = [settings, config.get("data_set")]
    else:
        content = [{name: v for name, v in line.items() if name not in TIMES} for line in read_json_lines(file)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
