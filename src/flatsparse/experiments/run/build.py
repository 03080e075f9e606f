"""The parts of a run, made from its configuration alone: data, network, optimizer, masks."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flatsparse.api import sparsify
from flatsparse.common.errors import InputError
from flatsparse.common.seeds import derive
from flatsparse.experiments.data.batches import batches
from flatsparse.experiments.data.samples import DataSet
from flatsparse.experiments.data.sources import load
from flatsparse.experiments.data.splits import Splits, split
from flatsparse.experiments.run.config import ResolvedRun, change
from flatsparse.experiments.run.ddp import SINGLE, DistContext
from flatsparse.experiments.run.learning_rate import start_schedule
from flatsparse.experiments.run.method import with_method_options
from flatsparse.experiments.run.optimizer import sharpness_aware
from flatsparse.experiments.run.task import NETWORKS, check_fit, check_takes, loss
from flatsparse.measure.flops import Cost, cost
from flatsparse.methods import kind_of, traits_of
from flatsparse.methods.traits import Scoring
from flatsparse.sparse.plan import due_steps
from flatsparse.sparse.training import SparseTraining


@dataclass
class Parts:
    """The parts of a run, and the run with the sizes of its data and its method's own options filled in.

    Attributes:
        own_period: the requested steps between mask updates, or else the method's own before it was shortened.
        net: the model as it is trained: wrapped for several processes, or compiled.
        fresh: makes another such model, with weights of its own.
        data: the data set that the splits were taken from.
        context: the processes that train the run together.
        gradient: of the step before, on steps that compare the two.
    """

    run: ResolvedRun
    own_period: int | None
    model: nn.Module
    net: nn.Module
    optimizer: Optimizer
    training: SparseTraining
    schedule: LRScheduler
    cost: Cost
    splits: Splits
    augment: bool
    classes: int
    steps_per_epoch: int
    fresh: Callable[[], nn.Module]
    data: DataSet
    context: DistContext = SINGLE
    gradient: Tensor | None = None


def build(run: ResolvedRun, context: DistContext = SINGLE) -> Parts:
    """Return a run's data, network, optimizer and masks, all made from its seed.

    Raises: InputError for what cannot be run, such as a batch that is too small for the processes.
    """
    data, splits = make_data(run)
    fresh = functools.partial(make_network, run, data)
    model, net = make_model(run, fresh, data, splits, context)
    steps_per_epoch = math.ceil(len(splits.train) / run.optim.batch_size)
    steps = run.schedule.whole_epochs * steps_per_epoch
    optimizer = make_optimizer(run, model, steps)
    period = run.pruning.every
    own_period = getattr(kind_of(run.pruning.method)(), "every", None) if period is None else period
    run, options = with_method_options(run, run.schedule.epochs * steps_per_epoch)
    run = change(run, train_size=len(splits.train), validation_size=len(splits.validation))
    training = make_sparse(run, net, optimizer, steps, splits, options)
    return Parts(
        run=run,
        own_period=own_period,
        model=model,
        net=net,
        optimizer=optimizer,
        training=training,
        schedule=start_schedule(run, optimizer, steps_per_epoch),
        cost=cost(model, splits.train.blank),
        splits=splits,
        augment=data.augmented and run.dataset.augmentation,
        classes=data.classes,
        steps_per_epoch=steps_per_epoch,
        fresh=fresh,
        data=data,
        context=context,
    )


def make_data(run: ResolvedRun) -> tuple[DataSet, Splits]:
    """Return a run's data set, and its splits on the run's device."""
    data = load(run.dataset.data, run.dataset.data_dir)
    check_fit(run.model, data)
    return data, splits_of(run, data).to(torch.device(run.runtime.device))


def splits_of(run: ResolvedRun, data: DataSet) -> Splits:
    """Return the splits that a run takes from a data set."""
    return split(
        data,
        train_size=run.dataset.train_size,
        validation_size=run.dataset.validation_size,
        label_noise=run.label_noise,
        seed=run.seed,
    )


def make_network(run: ResolvedRun, data: DataSet) -> nn.Module:
    """Return a new network of a run's kind for a data set, on the CPU."""
    return NETWORKS[run.model](num_classes=data.classes, in_channels=data.pool.shape[-1])


def make_model(
    run: ResolvedRun, fresh: Callable[[], nn.Module], data: DataSet, splits: Splits, context: DistContext = SINGLE
) -> tuple[nn.Module, nn.Module]:
    """Return a run's network, and the same as it is trained: wrapped for several processes, or compiled."""
    size = run.optim.batch_size
    smallest = min((len(splits.train) - 1) % size + 1, size)
    if smallest < context.size:
        raise InputError(
            f"the smallest batch has {smallest} images for {context.size} processes: give another --batch-size or --train-size"
        )
    torch.manual_seed(derive(run.seed, "model"))
    model = fresh()
    check_takes(run.model, model, data.pool, smallest // context.size)
    model.to(device=run.runtime.device)
    layout = torch.channels_last if run.runtime.channels_last else torch.contiguous_format
    model.to(memory_format=layout)  # type: ignore[call-overload]  # torch's own stubs leave this form out
    net = context.parallel(model)
    if run.runtime.compile:
        torch.compiler.reset()  # graphs of an earlier run in this process would not see this run's perturbed weights
        net = torch.compile(net)  # type: ignore[assignment]  # it gives a module for a module
    return model, net


def make_optimizer(run: ResolvedRun, model: nn.Module, steps: int) -> Optimizer:
    """Return a run's optimizer: its base, wrapped to be sharpness-aware where it is."""
    return sharpness_aware(run, _base(run, model), steps)


def _base(run: ResolvedRun, model: nn.Module) -> Optimizer:
    optim = run.optim
    if optim.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=optim.lr, weight_decay=optim.weight_decay)
    return torch.optim.SGD(
        model.parameters(),
        lr=optim.lr,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        nesterov=optim.nesterov,
    )


def make_sparse(
    run: ResolvedRun, net: nn.Module, optimizer: Optimizer, steps: int, splits: Splits, options: dict[str, Any]
) -> SparseTraining:
    """Start a run's sparse training by its method, and return it."""
    pruning, traits = run.pruning, traits_of(kind_of(run.pruning.method))
    return sparsify(
        net,
        optimizer,
        pruning.method,
        sparsity=pruning.sparsity if traits.takes_sparsity else None,
        steps=steps,
        seed=run.seed,
        include=pruning.include,
        exclude=pruning.exclude,
        layers=pruning.layers,
        **options,
        **_sample(run, splits, traits.scoring),
    )


def _sample(run: ResolvedRun, splits: Splits, scoring: Scoring) -> dict[str, Any]:
    """Return the training data that a method scores weights on before training, as its options."""
    if scoring == "none":
        return {}
    shuffled = batches(splits.train, splits, run.optim.batch_size, seed=derive(run.seed, "sample"))
    return {"batches": [next(shuffled)] if scoring == "batch" else shuffled, "loss_fn": loss}


def describe(parts: Parts) -> str:
    """Return a description of a run's parts in one sentence, and a line for each note on its data."""
    when = ""
    if parts.training.plan.rules:
        steps = parts.run.schedule.whole_epochs * parts.steps_per_epoch
        due = due_steps(parts.training.plan.rules, last=steps)
        when = f", masks updated {due.count(0, steps)} times"
    every = parts.run.pruning.every
    if every is not None and every != parts.own_period:
        when += f", every {every} steps, not {parts.own_period}, so that {parts.run.schedule.epochs} epochs have ten"
    if parts.training.rounds > 1:
        when = f", {parts.training.rounds} rounds down to {parts.run.pruning.sparsity:.2%} sparse"
    report = parts.training.report()
    what = "sequences" if parts.splits.train.are_tokens else f"images of {parts.classes} classes"
    notes = "".join(f"\nwarning: {note}" for note in parts.data.notes)
    return (
        f"{len(parts.splits.train)} training, {len(parts.splits.validation)} validation and {len(parts.splits.test)} test"
        f" {what}; {report.active:,} of {report.total:,} prunable weights active ({report.sparsity:.2%} sparse){when}{notes}"
    )
