"""A finished run, read back from its folder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch
from torch import Tensor, nn

from flatsparse.common.errors import InputError
from flatsparse.common.files import corrupt_file
from flatsparse.common.masks_file import load_masks
from flatsparse.common.schema import Schema, schema_error
from flatsparse.common.tensor_files import load_tensors, tensor_digest
from flatsparse.experiments.data.sources import load
from flatsparse.experiments.data.splits import Splits, split
from flatsparse.experiments.run.checkpoint import read_config, read_result
from flatsparse.experiments.run.config import ResolvedRun, kinds_of_settings
from flatsparse.experiments.run.method import before_there_was_a_choice
from flatsparse.experiments.run.task import NETWORKS


@dataclass(frozen=True)
class Finished:
    """What a finished run left behind.

    Attributes:
        model: with the true weights, in evaluation mode.
        masks: bool tensors by parameter name.
        result: what ``result.json`` says.
        digest: of the weights, the masks and the settings, not of the files that hold them: two runs that share it are the
            same.
    """

    folder: Path
    run: ResolvedRun
    model: nn.Module
    masks: dict[str, Tensor]
    result: dict[str, Any]
    splits: Splits
    digest: str


def load_run(folder: Path, *, device: str = "cpu", data_dir: Path | None = None) -> Finished:
    """Read a finished run.

    Args:
        folder: what ``flatsparse train`` or a comparison wrote.
        device: where model, masks and images go.
        data_dir: where copies of data sets lie; by default where the run found them.

    Raises: InputError for a folder that is no run's, not finished or damaged.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"'{folder}' is no run's folder: give one that flatsparse train wrote")
    if not (folder / "result.json").is_file():
        raise InputError(f"'{folder}' holds an unfinished run: finish it with flatsparse train --resume")
    config = read_config(folder)
    settings = config["settings"]
    run = run_of(settings, folder)
    masks, about = load_masks(folder / "masks.safetensors")
    tensors, _ = load_tensors(folder / "model.safetensors")
    data = load(run.dataset.data, data_dir or run.dataset.data_dir)
    data.check_same(config, f"'{folder}'")
    splits = split(
        data,
        train_size=run.dataset.train_size,
        validation_size=run.dataset.validation_size,
        label_noise=run.label_noise,
        seed=run.seed,
    )
    model = NETWORKS[str(run.model)](num_classes=data.classes, in_channels=splits.train.shape[-1])
    try:
        model.load_state_dict(tensors)
    except RuntimeError:
        raise corrupt_file(folder / "model.safetensors", f"its weights are not those of {run.model}") from None
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise InputError(f"'{folder}' has weights that are not finite: train it again, with a lower --lr or --rho")
    place = torch.device(device)
    splits = splits.to(place)
    return Finished(
        folder,
        run,
        model.to(place).eval(),
        {name: mask.to(place) for name, mask in masks.items()},
        read_result(folder),
        splits,
        _digest(tensors, masks, about, settings),
    )


def run_of(settings: dict[str, Any], folder: Path) -> ResolvedRun:
    """The run that a folder's settings are of. Raises InputError for settings that this version does not have."""
    kinds = kinds_of_settings(ResolvedRun)
    odd = sorted(settings.keys() - kinds.keys())  # one that is missing is younger
    if odd or settings.get("model") not in list(NETWORKS):
        why = f"it has --{odd[0].replace('_', '-')}" if odd else f"its model is {settings.get('model')}"
        raise InputError(f"'{folder}' was written by another version of flatsparse ({why}): read it with that version")
    if (wrong := schema_error(settings, {name: _form(kinds[name]) for name in settings})) is not None:
        raise corrupt_file(folder / "config.json", wrong)
    plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}
    if plain.get("data_dir") is not None:
        plain["data_dir"] = Path(plain["data_dir"])
    return ResolvedRun.of(**before_there_was_a_choice(settings), **plain)


def _form(kind: Any) -> Schema:
    """What JSON has for a field of a kind."""
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return set(parts)
    if get_origin(kind) is tuple:
        return [_form(part) for part in parts if part is not Ellipsis]
    if parts:
        return tuple(_form(part) for part in parts)
    return {Path: str, type(None): None}.get(kind, kind)


def _digest(
    tensors: dict[str, Tensor], masks: dict[str, Tensor], about: dict[str, str], settings: dict[str, Any]
) -> str:
    told = {name: value for name, value in settings.items() if name != "data_dir"}
    parts = [tensor_digest(tensors, {}), tensor_digest(masks, about), told]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
