"""The int8 forms of an exported run, for devices: written, compared with what torch computes, beside the dense network's."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatsparse.common.errors import InputError
from flatsparse.common.files import write_atomic
from flatsparse.experiments.data.split import Split
from flatsparse.experiments.export_checks import Runs, difference_of, one_tensor, score
from flatsparse.experiments.labels import scores_text
from flatsparse.experiments.run.build import initial_model
from flatsparse.experiments.run.load import Finished
from flatsparse.export import compile_ethos_u, compile_xnnpack, load_xnnpack
from flatsparse.export.ethos_u import MEMORY, TARGET, EthosU
from flatsparse.graph.shrink import shrink

CALIBRATION = 128  # training samples on which ranges of activations are taken
CHECKED = 16  # test samples on which the compiled program is compared with the int8 network in torch
TOLERANCE = 0.1  # of that comparison, as a share of the largest output: they round after each layer in their own way


@dataclass(frozen=True)
class EdgeOptions:
    """What is chosen for the int8 forms.

    Attributes:
        target, memory: the processor of ``ethos-u`` and where its weights lie, as in ``flatsparse.export.ethos_u``.
        dense: a finished dense run of the same network, to be put beside the run.
        stage: is called with the name of each stage as it begins.
    """

    target: str = TARGET
    memory: str = MEMORY
    dense: Finished | None = None
    stage: Callable[[str], None] = lambda stage: None


EDGE = EdgeOptions()


@dataclass(frozen=True)
class Int8Form:
    """A way to write a run in int8.

    Attributes:
        file: its name in the folder.
        write: writes a run into a file, given test samples; returns what runs it, and further fields of its record.
    """

    file: str
    write: Callable[[Finished, Path, Split, EdgeOptions], tuple[Runs, dict[str, Any]]]


def write_ethos_u(run: Finished, file: Path, test: Split, options: EdgeOptions) -> tuple[Runs, dict[str, Any]]:
    """Write a run for an Ethos-U; what runs it is the int8 network in torch, as no PC runs the file."""
    compiled = _compiled(run, file.parent, options, "")
    write_atomic(file, compiled.pte)
    options.stage("checking")
    inputs = one_tensor(*run.task.inputs(run.model, next(test.first(CHECKED).batches(CHECKED)).content), "ethos-u")
    fields = {
        **_calibrated(run),
        "checked": _compared(compiled.reference(inputs), compiled.int8(inputs), "the TOSA reference model"),
        "target": compiled.target,
        "memory": compiled.memory,
        **_cost(compiled),
    }
    if options.dense is None:
        fresh = dataclasses.replace(run, model=initial_model(run.run, run.task).eval(), masks={})
        beside = _compiled(fresh, file.parent, options, "dense, ")
        fields["dense"] = {"run": None, **_cost(beside)}
    else:
        beside = _compiled(options.dense, file.parent, options, "dense, ")
        options.stage("dense, measuring")
        fields["dense"] = {
            "run": options.dense.digest,
            **_cost(beside),
            **score(beside.int8, options.dense, test),
            "float": score(options.dense.model, options.dense, test),
        }
    options.stage("measuring")
    return compiled.int8, fields


def write_xnnpack(run: Finished, file: Path, test: Split, options: EdgeOptions) -> tuple[Runs, dict[str, Any]]:
    """Write a run for XNNPACK; what runs it is the file, in executorch's runtime."""
    compiled = compile_xnnpack(*without_channels(run), calibration(run, "xnnpack"), report=options.stage)
    write_atomic(file, compiled.pte)
    runs = load_xnnpack(file)
    inputs = one_tensor(*run.task.inputs(run.model, next(test.first(CHECKED).batches(CHECKED)).content), "xnnpack")
    fields = {
        **_calibrated(run),
        "checked": _compared(runs(inputs), compiled.int8(inputs), "executorch's runtime"),
        "on_cpu": compiled.on_cpu,
    }
    options.stage("measuring")
    return runs, fields


INT8_FORMS = {
    "ethos-u": Int8Form("model.ethos-u.pte", write_ethos_u),
    "xnnpack": Int8Form("model.xnnpack.pte", write_xnnpack),
}


def calibration(run: Finished, name: str) -> Tensor:
    """Return the training samples on which ranges of activations are taken: the same for all runs on the same data and seed.

    Raises: InputError for a network that takes more than one tensor; ``name`` is the format's.
    """
    batches = run.task.splits.train.batches(32, seed=0, augment=False)
    parts = [
        one_tensor(*run.task.inputs(run.model, batch.content), name)
        for batch in itertools.islice(batches, CALIBRATION // 32)
    ]
    return torch.cat(parts)


def without_channels(run: Finished) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return the network and masks that are compiled: where channels were pruned, a smaller network without them.

    Raises: InputError as ``flatsparse.export.save_small`` does, for a run whose method prunes channels. Where others have left a
        channel without weights by chance, and it cannot be removed, the network is compiled as it is.
    """
    if all(mask.flatten(1).any(1).all() for mask in run.masks.values()):
        return run.model, run.masks
    try:
        return shrink(run.model, run.masks), {}  # what is pruned besides is 0 in it
    except InputError:
        if run.run.pruning.channels is not None:
            raise
        return run.model, run.masks


def check_dense(dense: Finished, run: Finished) -> None:
    """Raise InputError when a run is not a dense one of the same network on the same data as another."""
    shapes, wanted_shapes = (
        {name: tuple(tensor.shape) for name, tensor in one.model.state_dict().items()} for one in (dense, run)
    )
    if shapes != wanted_shapes:  # the same network may be named by another path
        raise InputError(
            f"'{dense.folder}' is of another network, with other names or shapes of tensors: give another --dense"
        )
    for kind, given, wanted in (
        ("data", dense.run.dataset.title, run.run.dataset.title),
        ("image size", dense.run.dataset.image_size, run.run.dataset.image_size),
    ):
        if given != wanted:
            raise InputError(f"'{dense.folder}' is of another {kind} ({given}, not {wanted}): give another --dense")
    if not all(bool(mask.all()) for mask in dense.masks.values()):
        raise InputError(f"'{dense.folder}' is sparse: give a run of --method dense as --dense")


def int8_line(form: dict[str, Any]) -> str:
    """Return what the record of an int8 form says beside its size and accuracy, as text."""
    text = ""
    if "estimate" in form:
        beside = form["dense"]
        mine, dense = form["estimate"], beside["estimate"]
        text += (
            f"; {form['target']} with weights in {form['memory']}, by Vela: {mine['cycles']:,} cycles of {dense['cycles']:,}"
            f" dense, {mine['macs']:,} MACs of {dense['macs']:,},"
            f" {_kilobytes(mine['encoded_weight_bytes'])} of encoded weights of {_kilobytes(dense['encoded_weight_bytes'])},"
            f" {_kilobytes(_moved(mine))} moved of {_kilobytes(_moved(dense))}"
        )
        if beside["run"] is None:
            text += " (dense with fresh weights: it has no accuracy, give --dense RUN)"
        else:
            own = scores_text(beside["scores"]) if "scores" in beside else f"accuracy {beside['accuracy']:.2f} %"
            text += f"; the dense run in int8 has {own}"
    if form["on_cpu"]:
        names = ", ".join(f"{count} {name}" for name, count in form["on_cpu"].items())
        text += f"; left to the CPU: {names}"
        if "estimate" in form:
            text += ", which the estimate leaves out"
    return text


def _compiled(run: Finished, folder: Path, options: EdgeOptions, whose: str) -> EthosU:
    return compile_ethos_u(
        *without_channels(run),
        calibration(run, "ethos-u"),
        target=options.target,
        memory=options.memory,
        folder=folder,
        report=lambda stage: options.stage(whose + stage),
    )


def _cost(compiled: EthosU) -> dict[str, Any]:
    estimate = dataclasses.asdict(compiled.estimate)
    return {
        "program_bytes": len(compiled.pte),
        "estimate": {**estimate, "inferences_per_second": compiled.estimate.inferences_per_second},
        "on_cpu": compiled.on_cpu,
    }


def _calibrated(run: Finished) -> dict[str, int]:
    return {"calibrated_on": min(CALIBRATION, len(run.task.splits.train))}


def _compared(outputs: Tensor, wanted: Tensor, where: str) -> dict[str, Any]:
    """Return the comparison of a compiled program with the int8 network. Raises InputError when it is another network."""
    difference = difference_of(outputs, wanted)
    if not difference <= TOLERANCE:  # NaN too
        raise InputError(
            f"in {where} the compiled program's outputs differ by {difference:.2g} of the largest from torch's int8,"
            f" and {TOLERANCE:g} is allowed; its file was not kept"
        )
    equal = float((outputs == wanted).float().mean())
    return {"in": where, "samples": len(outputs), "difference": difference, "tolerance": TOLERANCE, "equal": equal}


def _moved(estimate: dict[str, Any]) -> int:
    return sum(traffic["whole"] for traffic in estimate["traffic"].values())


def _kilobytes(count: int) -> str:
    return f"{count / 1000:,.1f} kB"
