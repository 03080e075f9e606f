"""Exports of finished runs: each form is written, read back and compared with the run before its file appears."""

from __future__ import annotations

import copy
import hashlib
import os
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatsparse.api import sparsify
from flatsparse.common.errors import InputError, unknown
from flatsparse.common.files import read
from flatsparse.common.json_files import read_json, write_json
from flatsparse.common.schema import NotRequired
from flatsparse.common.seeds import derive
from flatsparse.experiments.claims import alone_in
from flatsparse.experiments.clock import clock
from flatsparse.experiments.clock import seconds as seconds_of
from flatsparse.experiments.data.split import Batch, Split
from flatsparse.experiments.export_checks import Runs, all_outputs, difference_of, one_tensor, score
from flatsparse.experiments.export_edge import EDGE, EdgeOptions, Int8Form, check_dense, int8_line
from flatsparse.experiments.export_forms import FORMS
from flatsparse.experiments.labels import scores_text
from flatsparse.experiments.run.environment import environment
from flatsparse.experiments.run.load import Finished
from flatsparse.experiments.stats import Interval, median
from flatsparse.methods import FIXED

RECORD, UNFINISHED = "export.json", ".export-"  # the latter starts the name of a folder that a kill may leave
RECORD_FORM = {
    "run": {"digest": str},
    "formats": {str: {"sha256": str}},
    "coming": NotRequired(([str], str)),  # the hashes of files that were about to be put there
}
ROUNDS, SECONDS = 15, 3.0  # of timing each form, at most; but three rounds at least
BATCH = 32  # images of a timed step


def export(
    run: Finished,
    formats: tuple[str, ...],
    out: Path,
    *,
    images: int = 1000,
    edge: EdgeOptions = EDGE,
    report: Callable[[str, dict[str, Any]], None],
) -> dict[str, Any]:
    """Write a run in some forms, each of which is read back and computes the outputs of test samples.

    Args:
        formats: names in ``FORMS``.
        out: the folder; what an earlier export of the same run wrote there is replaced, anything else is left alone.
        images: of the test set, the first so many.
        edge: for the int8 forms.
        report: is called with each form and its record.

    Returns: what ``export.json`` says, see docs/export.md.
    Raises: InputError for a form that is unknown, cannot be written or says other than the run; its file is then not there.
    """
    if not formats:
        raise InputError(f"no format is given: give --format {' '.join(FORMS)}, or some of them")
    for name in formats:
        if name not in FORMS:
            raise unknown("format", name, FORMS)
    if edge.dense is not None:
        check_dense(edge.dense, run)
    with alone_in(out):
        return _export(run, formats, out, images, edge, report)


def _export(
    run: Finished,
    formats: tuple[str, ...],
    out: Path,
    images: int,
    edge: EdgeOptions,
    report: Callable[[str, dict[str, Any]], None],
) -> dict[str, Any]:
    """Write a run in known forms, into a folder that exists."""
    record, coming = _claimed(run, formats, out)
    test = run.task.splits.test.first(images)
    wanted = all_outputs(run.model, run, test)
    record["run"] |= {"images": len(test), **score(run.model, run, test)}
    for name in formats:
        with tempfile.TemporaryDirectory(dir=out, prefix=UNFINISHED) as folder, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            file = Path(folder) / FORMS[name].file
            form = _checked(run, name, file, test, wanted, edge)
            coming = [*coming, form["sha256"]]
            write_json(out / RECORD, {**record, "coming": coming})  # a kill here leaves no unknown file
            os.replace(file, out / file.name)
        record["formats"][name] = form
        coming = [digest for digest in coming if digest != form["sha256"]]
        write_json(out / RECORD, {**record, "coming": coming} if coming else record)
        report(name, record["formats"][name])
    return record


def _checked(run: Finished, name: str, file: Path, test: Split, wanted: Tensor, edge: EdgeOptions) -> dict[str, Any]:
    """Write one form, read it back and compare. Raises InputError when its outputs are not the run's."""
    form, batch = FORMS[name], next(test.batches(BATCH))
    args, kwargs = run.task.inputs(run.model, batch.content)
    if name in ("onnx", "2:4") or isinstance(form, Int8Form):
        one_tensor(args, kwargs, name)
    fields: dict[str, Any] = {}
    if isinstance(form, Int8Form):
        runs, fields = form.write(run, file, test, edge)
        difference = difference_of(all_outputs(runs, run, test), wanted)  # by rounding: what it costs is in the score
    else:
        removed = form.write(run, file, args)
        runs = form.load(run, file, _empty(run.model))
        difference = difference_of(all_outputs(runs, run, test), wanted)
        if not difference <= form.tolerance:  # NaN too
            raise InputError(
                f"format '{name}' does not say what the run says: outputs differ by {difference:.2g} of the largest, and"
                f" {form.tolerance:g} is allowed; its file was not kept"
            )
        fields["tolerance"] = form.tolerance
    content = read(file)
    record = {
        "file": file.name,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "difference": difference,
        **fields,
        **score(runs, run, test),
        "images": len(test),
    }
    device = wanted.device.type
    # The others are the run's model itself, or do not run here.
    if name in ("small", "csr", "2:4") or (name in ("onnx", "xnnpack") and device == "cpu"):
        timed = (args[0][:1],) if name == "xnnpack" else args  # which computes one sample at a time
        record["measured_on"] = environment(device=device)
        record["inference"] = _time_ratio(_forward(runs, timed, kwargs), _forward(run.model, timed, kwargs), device)
    if name == "small":
        record["parameters_removed"] = removed
        small, base = copy.deepcopy(runs), copy.deepcopy(run.model)
        record["training"] = _time_ratio(
            _training_step(run, small, batch), _training_step(run, base, batch, True), device
        )
    return record


def _claimed(run: Finished, formats: tuple[str, ...], out: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the record of a folder so far, and the hashes of files that killed exports have put there without a record.

    Raises: InputError when something else in the folder would be replaced.
    """
    about = {
        "digest": run.digest,
        "method": run.run.pruning.method,
        "model": run.result.model,
        "data": run.run.dataset.title,
    }
    before: dict[str, Any] = {"run": about, "formats": {}}
    if (out / RECORD).exists():
        before = read_json(out / RECORD, RECORD_FORM)
        if before["run"]["digest"] != run.digest:
            raise InputError(f"'{out}' holds the export of another run: give another --out")
    announced = before.pop("coming", [])
    announced = [announced] if isinstance(announced, str) else announced  # as records had it
    for name in formats:
        file = out / FORMS[name].file
        known = before["formats"].get(name, {}).get("sha256"), *announced
        if file.exists() and (not file.is_file() or _hash_of(file) not in known):
            raise InputError(f"'{file}' is there and not what an export wrote: move it away, or give another --out")
    for left in out.glob(f"{UNFINISHED}*"):  # by a killed export
        shutil.rmtree(left, ignore_errors=True)
    if announced:
        there = {_hash_of(out / form.file) for form in FORMS.values() if (out / form.file).is_file()}
        there -= {form["sha256"] for form in before["formats"].values()}
        announced = [digest for digest in announced if digest in there]
    return before, announced


def _hash_of(file: Path) -> str:
    return hashlib.sha256(read(file)).hexdigest()


def _empty(model: nn.Module) -> nn.Module:
    """Return a model of the same kind whose numbers are all NaN or 0: any that is not loaded spoils its outputs."""
    empty = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in empty.state_dict().values():
            tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
    return empty


def line(name: str, form: dict[str, Any]) -> str:
    """Return the record of a form of an exported run as a line of text."""
    near = f"within {form['difference']:.1e} of the largest" if form["difference"] else "bit for bit the run's"
    inside = "int8 " if "calibrated_on" in form else ""
    text = f"{form['file']} ({name}): {form['bytes'] / 1000:,.0f} kB, outputs {near}, {inside}{scored(form)}"
    for work in ("inference", "training"):
        if work in form:
            saved = form[work]
            ratio = Interval(saved["ratio"], saved["low"], saved["high"], saved["rounds"])
            text += f", {work} in {ratio:.2f} of the run's time"
    if inside:
        text += int8_line(form)
    if form.get("parameters_removed") == 0:
        text += "; no channel could go, so that it is as large as the dense model"
    return text


def scored(record: dict[str, Any]) -> str:
    """Return the accuracy, or a task's scores, in a record of an export as text."""
    return scores_text(record["scores"]) if "scores" in record else f"accuracy {record['accuracy']:.2f} %"


# -- speed, side by side ----------------------------------------------------------------------------------------------


def _time_ratio(call: Callable[[], None], base: Callable[[], None], device: str) -> dict[str, float]:
    """Return the ratio of two calls' times: the median over repeats that time both, in random order, with its 95 % interval.

    Below 1 the first is faster.
    """
    order, began = random.Random(derive(0, "order")), clock()
    ratios: list[float] = []
    for each in (call, base, call, base):  # the first calls allocate
        each()
    while len(ratios) < 3 or (len(ratios) < ROUNDS and clock() - began < SECONDS):
        seconds = {each: seconds_of(each, device) for each in order.sample([call, base], 2)}
        ratios.append(seconds[call] / seconds[base])
    ratio = median(ratios)
    return {"ratio": ratio.mean, "low": ratio.low, "high": ratio.high, "rounds": len(ratios)}


def _forward(runs: Runs, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], None]:
    def call() -> None:
        with torch.no_grad():
            runs(*args, **kwargs)

    return call


def _training_step(run: Finished, model: Any, batch: Batch, masked: bool = False) -> Callable[[], None]:
    """Return a step of SGD with momentum, under the run's masks or without any."""
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-4, momentum=0.9)
    training = sparsify(model, optimizer, FIXED, masks=run.masks, steps=1) if masked else None

    def step(training: Any = training) -> None:  # which must live as long as the step
        run.task.loss(model, batch.content).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
