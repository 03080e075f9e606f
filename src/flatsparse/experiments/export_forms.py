"""The forms of an exported run: how each is written, read back, and how near its outputs must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flatsparse.common.errors import InputError
from flatsparse.common.masks_file import load_masks, save_masks
from flatsparse.common.tensor_files import load_tensors, save_tensors
from flatsparse.experiments.export_checks import Runs
from flatsparse.experiments.export_edge import INT8_FORMS, Int8Form
from flatsparse.experiments.run.load import Finished
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

Args = tuple[Any, ...]  # of a call of the model without names


@dataclass(frozen=True)
class Form:
    """A way to write a run.

    Attributes:
        file: its name in the folder.
        write: writes a run into a file, given arguments of its model; the small form returns the number of removed parameters.
        load: returns a function of inputs, from the file and a model of the run's kind whose numbers are all missing.
        tolerance: the largest difference of outputs from the run's, as a share of its largest output; 0 is bit for bit.
    """

    file: str
    write: Callable[[Finished, Path, Args], int | None]
    load: Callable[[Finished, Path, nn.Module], Runs]
    tolerance: float


def _write_masks(run: Finished, file: Path, args: Args) -> None:
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


def _write_two_four(run: Finished, file: Path, args: Args) -> None:
    to_semi_structured(run.model, run.masks)  # refuses what cannot be packed; torch has no file for what is
    half = with_zeros(run.model, run.masks).half().state_dict()
    save_tensors(file, half, {"format": "pt"})


def _load_two_four(run: Finished, file: Path, empty: nn.Module) -> Runs:
    empty.load_state_dict(load_tensors(file)[0])
    packed = to_semi_structured(empty, run.masks)
    return lambda inputs: packed(inputs.half()).float()


FORMS: dict[str, Form | Int8Form] = {
    "dense": Form(
        "dense.safetensors", lambda run, file, args: save_dense(file, run.model, run.masks), _load_dense, 0.0
    ),
    "masks": Form("masks.safetensors", _write_masks, _load_masks, 0.0),
    "small": Form(
        "small.safetensors",
        lambda run, file, args: save_small(file, run.model, run.masks),
        lambda run, file, empty: load_small(file, empty),
        1e-4,
    ),
    "csr": Form(
        "csr.safetensors",
        lambda run, file, args: save_csr(file, to_csr(run.model, run.masks)),
        lambda run, file, empty: load_csr(file, empty),
        1e-4,
    ),
    "2:4": Form("two-four.safetensors", _write_two_four, _load_two_four, 1e-2),
    "onnx": Form(
        "model.onnx",
        lambda run, file, args: save_onnx(file, run.model, run.masks, args[0]),
        lambda run, file, empty: load_onnx(file),
        1e-4,
    ),
    **INT8_FORMS,
}
