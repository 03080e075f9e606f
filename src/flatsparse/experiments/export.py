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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatsparse.api import sparsify
from flatsparse.common.errors import InputError, unknown
from flatsparse.common.files import read
from flatsparse.common.json_files import read_json, write_json
from flatsparse.common.masks_file import load_masks, save_masks
from flatsparse.common.seeds import derive
from flatsparse.common.tensor_files import load_tensors, save_tensors
from flatsparse.experiments.claims import alone_in
from flatsparse.experiments.clock import clock
from flatsparse.experiments.clock import seconds as seconds_of
from flatsparse.experiments.data.splits import Images, batches
from flatsparse.experiments.run import task
from flatsparse.experiments.run.environment import environment
from flatsparse.experiments.run.load import Finished
from flatsparse.experiments.stats import Interval, median
from flatsparse.export import (
    load_csr,
    load_onnx,
    load_small,
    save_csr,
    save_dense,
    save_onnx,
    save_small,
    to_csr,
    to_semi_structured,
    with_zeros,
)

RECORD, UNFINISHED = "export.json", ".export-"  # the latter starts the name of a folder that a kill may leave
ROUNDS, SECONDS = 15, 3.0  # of timing each form, at most; but three rounds at least
BATCH = 32  # images of a timed step

Runs = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Form:
    """A way to write a run.

    Attributes:
        file: its name in the folder.
        write: the run, into the file, given a batch of images; of the small form it gives how many parameters went.
        load: what computes outputs, from the file and a model of the run's kind whose numbers are all missing.
        tolerance: the largest difference of outputs from the run's, as a share of its largest output; 0 is bit for bit.
    """

    file: str
    write: Callable[[Finished, Path, Tensor], int | None]
    load: Callable[[Finished, Path, nn.Module], Runs]
    tolerance: float


def _write_masks(run: Finished, file: Path, sample: Tensor) -> None:
    _, about = load_masks(run.folder / "masks.safetensors")
    save_masks(file, run.masks, method=about["method"], step=int(about["step"]))


def _load_dense(run: Finished, file: Path, empty: nn.Module) -> Runs:
    empty.load_state_dict(load_tensors(file)[0])
    return empty


def _load_masks(run: Finished, file: Path, empty: nn.Module) -> Runs:
    masks, _ = load_masks(file)
    if list(masks) != list(run.masks) or not all(torch.equal(masks[n], m.cpu()) for n, m in run.masks.items()):
        raise InputError("the masks that were read back are not the run's: the file was not kept")
    return with_zeros(run.model, masks)


def _write_two_four(run: Finished, file: Path, sample: Tensor) -> None:
    to_semi_structured(run.model, run.masks)  # refuses what cannot be packed; torch has no file for what is
    half = with_zeros(run.model, run.masks).half().state_dict()
    save_tensors(file, half, {"format": "pt"})


def _load_two_four(run: Finished, file: Path, empty: nn.Module) -> Runs:
    empty.load_state_dict(load_tensors(file)[0])
    packed = to_semi_structured(empty, run.masks)
    return lambda inputs: packed(inputs.half()).float()


FORMS = {
    "dense": Form("dense.safetensors", lambda run, file, x: save_dense(file, run.model, run.masks), _load_dense, 0.0),
    "masks": Form("masks.safetensors", _write_masks, _load_masks, 0.0),
    "small": Form(
        "small.safetensors",
        lambda run, file, x: save_small(file, run.model, run.masks),
        lambda run, file, empty: load_small(file, empty),
        1e-4,
    ),
    "csr": Form(
        "csr.safetensors",
        lambda run, file, x: save_csr(file, to_csr(run.model, run.masks)),
        lambda run, file, empty: load_csr(file, empty),
        1e-4,
    ),
    "2:4": Form("two-four.safetensors", _write_two_four, _load_two_four, 1e-2),
    "onnx": Form(
        "model.onnx",
        lambda run, file, x: save_onnx(file, run.model, run.masks, x),
        lambda run, file, empty: load_onnx(file),
        1e-4,
    ),
}


def export(
    run: Finished,
    formats: tuple[str, ...],
    out: Path,
    *,
    images: int = 1000,
    report: Callable[[str, dict[str, Any]], None],
) -> dict[str, Any]:
    """Write a run in some forms, each of which is read back and computes the outputs of test images.

    Args:
        formats: names in ``FORMS``.
        out: the folder; what an earlier export of the same run wrote there is replaced, anything else is left alone.
        images: of the test set, the first so many.
        report: is called with each form and its record.

    Returns: what ``export.json`` says, see docs/export.md.
    Raises: InputError for a form that is unknown, cannot be written or says other than the run; its file is then not there.
    """
    if not formats:
        raise InputError(f"no format is asked for: give --format {' '.join(FORMS)}, or some of them")
    for name in formats:
        if name not in FORMS:
            raise unknown("format", name, FORMS)
    with alone_in(out):
        return _export(run, formats, out, images, report)


def _export(
    run: Finished, formats: tuple[str, ...], out: Path, images: int, report: Callable[[str, dict[str, Any]], None]
) -> dict[str, Any]:
    """Write a run in forms that there are, into a folder that is there."""
    record = _claimed(run, formats, out)
    test = run.splits.test.take(torch.arange(min(images, len(run.splits.test)), device=run.splits.test.labels.device))
    wanted = _outputs(run.model, run, test)
    record["run"] |= {"images": len(test), "accuracy": _accuracy(wanted, test)}
    for name in formats:
        with tempfile.TemporaryDirectory(dir=out, prefix=UNFINISHED) as folder, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            file = Path(folder) / FORMS[name].file
            found = _checked(run, name, file, test, wanted)
            write_json(out / RECORD, {**record, "coming": found["sha256"]})  # a kill here leaves no stranger's file
            os.replace(file, out / file.name)
        record["formats"][name] = found
        write_json(out / RECORD, record)
        report(name, record["formats"][name])
    return record


def _checked(run: Finished, name: str, file: Path, test: Images, wanted: Tensor) -> dict[str, Any]:
    """Write one form, read it back and compare. Raises InputError when its outputs are not those that are wanted."""
    form, batch = FORMS[name], next(iter(batches(test, run.splits, size=BATCH)))
    removed = form.write(run, file, batch[0])
    runs = form.load(run, file, _empty(run.model))
    outputs = _outputs(runs, run, test)
    difference = float((outputs - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))
    if not difference <= form.tolerance:  # NaN too
        raise InputError(
            f"format '{name}' does not say what the run says: outputs differ by {difference:.2g} of the largest, and"
            f" {form.tolerance:g} is allowed; its file was not kept"
        )
    content = read(file)
    found = {
        "file": file.name,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "difference": difference,
        "tolerance": form.tolerance,
        "accuracy": _accuracy(outputs, test),
        "images": len(test),
    }
    device = wanted.device.type
    if name in ("small", "csr", "2:4") or (name == "onnx" and device == "cpu"):  # the others are the run's model itself
        found["measured_on"] = environment(device=device)
        found["inference"] = _time_ratio(_forward(runs, batch[0]), _forward(run.model, batch[0]), device)
    if name == "small":
        found["parameters_removed"] = removed
        ours, base = copy.deepcopy(runs), copy.deepcopy(run.model)
        found["training"] = _time_ratio(_training_step(ours, batch), _training_step(base, batch, run.masks), device)
    return found


def _claimed(run: Finished, formats: tuple[str, ...], out: Path) -> dict[str, Any]:
    """What the folder's record says so far, when nothing in the folder stands in the way."""
    mine = {
        "digest": run.digest,
        "method": run.run.pruning.method,
        "model": run.run.model,
        "data": run.run.dataset.data,
    }
    before: dict[str, Any] = {"run": mine, "formats": {}}
    if (out / RECORD).exists():
        before = read_json(out / RECORD, {"run": {"digest": str}, "formats": {str: {"sha256": str}}})
        if before["run"]["digest"] != run.digest:
            raise InputError(f"'{out}' holds the export of another run: give another --out")
    coming = before.pop("coming", None)  # what a killed export was about to put in its place
    for name in formats:
        file = out / FORMS[name].file
        known = before["formats"].get(name, {}).get("sha256"), coming
        if file.exists() and (not file.is_file() or hashlib.sha256(read(file)).hexdigest() not in known):
            raise InputError(f"'{file}' is there and not what an export wrote: move it away, or give another --out")
    for left in out.glob(f"{UNFINISHED}*"):  # by a killed export
        shutil.rmtree(left, ignore_errors=True)
    return before


def _empty(model: nn.Module) -> nn.Module:
    """A model of the same kind that knows no number yet: what is not loaded into it spoils its outputs."""
    empty = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in empty.state_dict().values():
            tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
    return empty


@torch.no_grad()
def _outputs(runs: Runs, run: Finished, test: Images) -> Tensor:
    """The outputs of test images in float32."""
    return torch.cat([runs(inputs.contiguous()).float() for inputs, _ in batches(test, run.splits, size=100)])


def _accuracy(outputs: Tensor, test: Images) -> float:
    """In percent."""
    return 100 * int(task.correct(outputs, test.labels)) / test.targets


def line(name: str, found: dict[str, Any]) -> str:
    """One form of an exported run, in a line."""
    near = f"within {found['difference']:.1e} of the largest" if found["difference"] else "bit for bit the run's"
    text = (
        f"{found['file']} ({name}): {found['bytes'] / 1000:,.0f} kB, outputs {near}, accuracy {found['accuracy']:.2f} %"
    )
    for work in ("inference", "training"):
        if work in found:
            saved = found[work]
            ratio = Interval(saved["ratio"], saved["low"], saved["high"], saved["rounds"])
            text += f", {work} in {ratio:.2f} of the run's time"
    if found.get("parameters_removed") == 0:
        text += "; no channel could go, so that it is as large as the dense model"
    return text


# -- speed, side by side ----------------------------------------------------------------------------------------------


def _time_ratio(ours: Callable[[], None], base: Callable[[], None], device: str) -> dict[str, float]:
    """The time of ours to that of the base: the median over rounds that run both, in random order, with its 95 % interval.

    Below 1 ours is faster.
    """
    order, begun = random.Random(derive(0, "order")), clock()
    ratios: list[float] = []
    for call in (ours, base, ours, base):  # the first calls allocate
        call()
    while len(ratios) < 3 or (len(ratios) < ROUNDS and clock() - begun < SECONDS):
        seconds = {call: seconds_of(call, device) for call in order.sample([ours, base], 2)}
        ratios.append(seconds[ours] / seconds[base])
    found = median(ratios)
    return {"ratio": found.mean, "low": found.low, "high": found.high, "rounds": len(ratios)}


def _forward(runs: Runs, inputs: Tensor) -> Callable[[], None]:
    def call() -> None:
        with torch.no_grad():
            runs(inputs.contiguous())

    return call


def _training_step(
    model: Any, batch: tuple[Tensor, Tensor], masks: dict[str, Tensor] | None = None
) -> Callable[[], None]:
    """A step of SGD with momentum, under masks where there are any."""
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-4, momentum=0.9)
    training = sparsify(model, optimizer, "static", masks=masks, steps=1) if masks else None

    def step(training: Any = training) -> None:  # which must live as long as the step
        task.loss(model(batch[0]), batch[1]).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
