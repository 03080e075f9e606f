"""Resolving a run: fill in its defaults, and refuse invalid settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from flatsparse.common.errors import InputError, check_count, check_finite, check_fraction, check_sparsity, unknown
from flatsparse.experiments.data.vocabulary import SPECIAL
from flatsparse.experiments.run.config import (
    Optim,
    Perturbation,
    Pruning,
    ResolvedPruning,
    ResolvedRun,
    RunConfig,
    Runtime,
    Schedule,
    change,
    names_of_methods,
)
from flatsparse.experiments.run.devices import usable_device
from flatsparse.experiments.run.initial_weights import hash_of
from flatsparse.experiments.run.memory import as_bytes
from flatsparse.experiments.run.method import FILLED_IN, plan_of
from flatsparse.experiments.run.sharpness import WITH_BUDGET
from flatsparse.experiments.tasks.built_in import built_in
from flatsparse.experiments.tasks.image_files import is_of_files
from flatsparse.experiments.tasks.networks import TEXT_MODELS, check_network
from flatsparse.experiments.tasks.settings import Dataset
from flatsparse.methods import kind_of, name_of_kind, options_of, traits_of
from flatsparse.methods.presets import PRESETS
from flatsparse.sparse.distributions import DISTRIBUTIONS

MODELS_OF = {
    "digits": "digitnet",
    "imagenet": "resnet50",
    "imagenette": "resnet18",
}  # by data set, where it is not the usual one
MODEL = "resnet20"
OWN = "own"  # the model of a task


def resolve(run: RunConfig) -> ResolvedRun:
    """Return a run with its defaults filled in.

    Raises: InputError for anything that cannot be run.
    """
    if isinstance(run, ResolvedRun):
        return run
    model = _resolve_model(run)
    pruning = _resolve_pruning(run.pruning)
    _check_run(run)
    _check_dataset(run.dataset)
    _check_optim(run.optim)
    _check_schedule(run.schedule)
    _check_perturbation(run.perturbation)
    _check_runtime(run.runtime)
    given = {field.name: getattr(run, field.name) for field in dataclasses.fields(run)}
    resolved = change(
        ResolvedRun(**{**given, "model": model, "pruning": pruning, "init_sha256": run.init and hash_of(run.init)}),
        device=usable_device(run.runtime.device),
        accumulate=run.optim.accumulate if run.optim.parts > 1 else None,
    )
    plan_of(resolved)
    return resolved


def _resolve_model(run: RunConfig) -> str:
    """Return the name of a run's network."""
    dataset = run.dataset
    if dataset.task is None:
        return _model_for(dataset, run.model)
    if run.model not in (None, OWN):
        raise InputError(f"--model {run.model} has no use beside --task, which has a model of its own: leave it out")
    if dataset.data != Dataset.data:
        raise InputError(f"--data {dataset.data} has no use beside --task, which has data of its own: leave it out")
    for name in ("vocabulary", "image_size", "resize", "augmentation"):
        if getattr(dataset, name) != getattr(Dataset, name):
            flag = "--no-augmentation" if name == "augmentation" else f"--{name.replace('_', '-')}"
            raise InputError(f"{flag} has no use beside --task, which has data of its own: leave it out")
    return OWN


def _model_for(dataset: Dataset, named: str | None) -> str:
    """Return the name of the network for a data set. Raises InputError for one that cannot read it."""
    task = built_in(dataset.data)
    if task is None:
        model = MODELS_OF.get(dataset.data, MODEL) if named is None else named
        check_network(model)
        if model in TEXT_MODELS:
            raise InputError(
                f"--model {model} reads text, and '{dataset.data}' is images: give another --model or --data"
            )
        if dataset.vocabulary is not None:
            raise InputError(f"--vocabulary is for text, and '{dataset.data}' is images: leave it out")
        if dataset.resize is not None and not is_of_files(dataset):
            raise InputError(f"--resize {dataset.resize} is of images read while training: give --image-size too")
        return model
    for name in ("image_size", "resize"):
        if getattr(dataset, name) is not None:
            raise InputError(
                f"--{name.replace('_', '-')} is for images, and '{dataset.data}' is {task.reads}: leave it out"
            )
    if named is not None and named not in task.models:
        check_network(named)
        raise InputError(
            f"--model {named} cannot read '{dataset.data}', which is {task.reads}: give {_either(task.models)}"
        )
    return task.model if named is None else named


def _either(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}"


def _resolve_pruning(pruning: Pruning) -> ResolvedPruning:
    method = pruning.method if ".py:" in pruning.method else name_of_kind(kind_of(pruning.method))
    kind = kind_of(method)
    if pruning.layers not in PRESETS:
        raise unknown("choice of layers", pruning.layers, PRESETS)
    if pruning.distribution is not None and pruning.distribution not in DISTRIBUTIONS:
        raise unknown("distribution", pruning.distribution, DISTRIBUTIONS)
    traits, options = traits_of(kind), options_of(kind)
    if not traits.takes_sparsity and pruning.sparsity:
        raise InputError(
            f"--sparsity {pruning.sparsity} cannot be asked of '{method}', which removes channels: give --channels, e.g. 0.5"
        )
    for name in ("channels", *FILLED_IN, "sums", "penalty"):
        if getattr(pruning, name) != getattr(Pruning, name) and name not in options:
            why = {"channels": "which removes none", "sums": "which removes no channels"}.get(
                name, "which has no such choice"
            )
            raise InputError(
                f"--{name.replace('_', '-')} cannot be asked of '{method}', {why}: give --method {names_of_methods(name, 'or')}"
            )
    if pruning.every is not None:
        check_count("--every", pruning.every)
    if pruning.until is not None and not 0 < pruning.until <= 1:
        raise InputError(f"--until {pruning.until} is not in (0, 1]: give the share of the run in which masks change")
    if pruning.drop_fraction is not None:
        check_fraction("--drop-fraction", pruning.drop_fraction)
    if pruning.penalty is not None:
        check_finite("--penalty", pruning.penalty)
    given = {field.name: getattr(pruning, field.name) for field in dataclasses.fields(pruning)}
    own: dict[str, Any] = {n: getattr(kind, n, None) for n in ("channels", *FILLED_IN) if given[n] is None}
    default = traits.default_sparsity if traits.takes_sparsity else 0.0
    sparsity = default if pruning.sparsity is None else check_sparsity(pruning.sparsity)
    return ResolvedPruning(**{**given, **own, "method": method, "sparsity": sparsity})


def _check_run(run: RunConfig) -> None:
    check_finite("--rho", run.rho)
    if not 0 <= run.label_noise < 1:
        raise InputError(f"--label-noise {run.label_noise} is not in [0, 1): give the fraction of wrong labels")
    if run.perturbation.loss_budget is not None and run.sharpness not in ("none", *WITH_BUDGET):
        raise InputError(
            f"--loss-budget is for --sharpness {' and '.join(WITH_BUDGET)}, which perturb along a gradient, not"
            f" {run.sharpness}: leave one of them out"
        )
    if run.probe is not None and run.probe_every is None:
        raise InputError(f"--probe '{run.probe}' is not every=N with N at least 1: give e.g. every=100")


def _check_dataset(dataset: Dataset) -> None:
    if dataset.train_size is not None:
        check_count("--train-size", dataset.train_size)
    if dataset.validation_size is not None:
        check_count("--validation-size", dataset.validation_size, minimum=0)
    if dataset.vocabulary is not None:
        check_count("--vocabulary", dataset.vocabulary, minimum=len(SPECIAL) + 1)
    for name in ("image_size", "resize"):
        if getattr(dataset, name) is not None:
            check_count(f"--{name.replace('_', '-')}", getattr(dataset, name))
    if dataset.workers is not None:
        check_count("--workers", dataset.workers, minimum=0)


def _check_optim(optim: Optim) -> None:
    check_count("--batch-size", optim.batch_size)
    if optim.accumulate is not None and optim.batch_size % check_count("--accumulate", optim.accumulate):
        raise InputError(
            f"--accumulate {optim.accumulate} does not divide --batch-size {optim.batch_size}: give a number of equal parts"
        )
    check_finite("--lr", optim.lr, above=True)
    check_finite("--weight-decay", optim.weight_decay)
    check_finite("--momentum", optim.momentum)
    check_fraction("--label-smoothing", optim.label_smoothing)
    if optim.ema is not None:
        check_fraction("--ema", optim.ema)
    if optim.betas is not None:
        if optim.optimizer != "adamw":
            raise InputError(f"--betas are for --optimizer adamw, not {optim.optimizer}: leave them out")
        if not all(0 <= beta < 1 for beta in optim.betas):
            raise InputError(f"--betas {optim.betas[0]} {optim.betas[1]} are not in [0, 1): give e.g. 0.9 0.98")
    if optim.optimizer != "sgd" and (optim.nesterov or optim.momentum != Optim.momentum):
        raise InputError(f"--optimizer {optim.optimizer} has no --momentum or --nesterov: leave them out")
    if optim.nesterov and optim.momentum == 0:
        raise InputError("--nesterov needs momentum: give --momentum over 0")


def _check_schedule(schedule: Schedule) -> None:
    check_count("--epochs", schedule.epochs)
    check_finite("--multiplier", schedule.multiplier, above=True)
    if schedule.whole_epochs < 1:
        raise InputError(f"--multiplier {schedule.multiplier} leaves no epoch of {schedule.epochs}: give more --epochs")
    check_finite("--warmup", schedule.warmup)
    if schedule.lr_schedule == "inverse-sqrt" and schedule.warmup == 0:
        raise InputError(
            "--lr-schedule inverse-sqrt falls from the end of a warm-up: give --warmup over 0, e.g. 0.5 epochs"
        )
    if schedule.warmup >= schedule.epochs:
        raise InputError(
            f"--warmup {schedule.warmup} leaves none of {schedule.epochs} epochs at the full learning rate: give less"
        )
    milestones = list(schedule.milestones)
    if milestones != sorted(set(milestones)) or any(not 0 < m < 1 for m in milestones):
        given = " ".join(f"{m:g}" for m in milestones)
        raise InputError(f"--milestones {given} are not rising shares in (0, 1): give e.g. 0.5 0.75")


def _check_perturbation(perturbation: Perturbation) -> None:
    check_count("--look-every", perturbation.look_every)
    check_finite("--look-alpha", perturbation.look_alpha)
    if perturbation.loss_budget is not None:
        check_finite("--loss-budget", perturbation.loss_budget)
    if not 0 < perturbation.part <= 1:
        raise InputError(
            f"--stale-share {perturbation.stale_share} is not in (0, 1]: give the share of a batch, e.g. 0.25"
        )
    if not 0 < perturbation.share <= 1:
        raise InputError(
            f"--late-share {perturbation.late_share} is not in (0, 1]: give the share of the steps to perturb, e.g. 0.2"
        )


def _check_runtime(runtime: Runtime) -> None:
    if runtime.accelerate and (runtime.compile or runtime.precision != "float32"):
        other = "--compile" if runtime.compile else f"--precision {runtime.precision}"
        raise InputError(f"--accelerate computes in float32 by kernels of its own: leave it out, or {other}")
    check_count("--validate-every", runtime.validate_every)
    if runtime.eval_batch_size is not None:
        check_count("--eval-batch-size", runtime.eval_batch_size)
    if runtime.memory is not None:
        as_bytes(runtime.memory)
