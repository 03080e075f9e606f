"""Finished runs, read from their folders."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatsparse.common.errors import InputError
from flatsparse.common.files import corrupt_file
from flatsparse.common.masks_file import load_masks
from flatsparse.common.schema import form_of, schema_error
from flatsparse.common.tensor_files import load_tensors, tensor_digest
from flatsparse.experiments.run.build import initial_model, task_of
from flatsparse.experiments.run.config import ResolvedRun, change, kinds_of_settings
from flatsparse.experiments.run.folder import CONFIG, MASKS, RESULT, WEIGHTS, check_goes_with, read_config, read_result
from flatsparse.experiments.run.method import before_there_was_a_choice
from flatsparse.experiments.run.records import RunResult
from flatsparse.experiments.run.resolve import OWN
from flatsparse.experiments.tasks.networks import check_network
from flatsparse.experiments.tasks.run_task import RunTask


@dataclass(frozen=True)
class Finished:
    """A finished run.

    Attributes:
        task: with its batches on the model's device.
        model: with the true weights, in evaluation mode.
        masks: bool tensors by parameter name.
        digest: a hash of weights, masks and settings, not of the files that hold them: two runs that share it are the same.
    """

    folder: Path
    run: ResolvedRun
    model: nn.Module
    masks: dict[str, Tensor]
    result: RunResult
    task: RunTask
    digest: str


def load_run(folder: Path, *, device: str = "cpu", data_dir: Path | None = None) -> Finished:
    """Return the finished run of a folder.

    Args:
        folder: as ``flatsparse train`` or a comparison wrote it.
        device: of the model, the masks and the images.
        data_dir: the folder of local copies of data sets; by default the run's own.

    Raises: InputError for a folder that is no run's, not finished or damaged.
    """
    if not (folder / CONFIG).is_file():
        raise InputError(f"'{folder}' is no run's folder: give one that flatsparse train wrote")
    if not (folder / RESULT).is_file():
        raise InputError(f"'{folder}' holds an unfinished run: finish it with flatsparse train --resume")
    config = read_config(folder)
    run = run_of(config["settings"], folder)
    masks, about = load_masks(folder / MASKS)
    tensors, _ = load_tensors(folder / WEIGHTS)
    task = task_of(change(_with_its_file(run, config), device=device, data_dir=data_dir or run.dataset.data_dir))
    task.check_same(config, f"'{folder}'")
    model, where = _model(run, task, tensors, folder), torch.device(device)
    result = read_result(folder)
    check_goes_with(result, folder / MASKS, folder / WEIGHTS)
    return Finished(
        folder=folder,
        run=run,
        model=model.to(where).eval(),
        masks={name: mask.to(where) for name, mask in masks.items()},
        result=result,
        task=task,
        digest=_digest(tensors, masks, about, config["settings"]),
    )


def _with_its_file(run: ResolvedRun, config: dict[str, Any]) -> ResolvedRun:
    """Return a run with its task's file as a whole path, where its own leads nowhere: it was started in another folder."""
    file, _, function = (run.dataset.task or "").rpartition(":")
    if not file or Path(file).is_file():
        return run
    source = config.get("data_set", {}).get("source", file)
    return change(run, task=f"{source}:{function}")


def _model(run: ResolvedRun, task: RunTask, tensors: dict[str, Tensor], folder: Path) -> nn.Module:
    """Return a task's network with the weights of its folder. Raises InputError when they do not fit or are not finite."""
    model = initial_model(run, task)
    try:
        model.load_state_dict(tensors)
    except RuntimeError:
        raise corrupt_file(folder / WEIGHTS, f"its weights are not those of {run.model}") from None
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise InputError(f"'{folder}' has weights that are not finite: train it again, with a lower --lr or --rho")
    return model


def run_of(settings: dict[str, Any], folder: Path) -> ResolvedRun:
    """Return the run of a folder's settings. Raises InputError for settings that this version does not have."""
    kinds = kinds_of_settings(ResolvedRun)
    odd = sorted(settings.keys() - kinds.keys())  # one that is missing is younger
    model = settings.get("model")
    if odd or not _is_known(model):
        why = f"it has --{odd[0].replace('_', '-')}" if odd else f"its model is {model}"
        raise InputError(f"'{folder}' was written by another version of flatsparse ({why}): read it with that version")
    if (wrong := schema_error(settings, {name: form_of(kinds[name]) for name in settings})) is not None:
        raise corrupt_file(folder / CONFIG, wrong)
    plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in settings.items()}
    plain |= {name: Path(plain[name]) for name in ("data_dir", "init") if plain.get(name) is not None}
    return ResolvedRun.of(**before_there_was_a_choice(settings), **plain)


def _is_known(model: object) -> bool:
    """Return if a recorded network may be one that can be made; a file that it names is not run yet."""
    try:
        if model != OWN and ".py:" not in str(model):
            check_network(str(model))
    except InputError:
        if ":" in str(model):  # whose reason says more
            raise
        return False
    return True


def _digest(
    tensors: dict[str, Tensor], masks: dict[str, Tensor], about: dict[str, str], settings: dict[str, Any]
) -> str:
    settings = {name: value for name, value in settings.items() if name not in ("data_dir", "init")}
    parts = [tensor_digest(tensors, {}), tensor_digest(masks, about), settings]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
