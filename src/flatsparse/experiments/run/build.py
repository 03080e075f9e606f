"""A run's live parts, made from its configuration alone."""

from __future__ import annotations

import dataclasses
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
from flatsparse.experiments.data.sources import load
from flatsparse.experiments.data.splits import DataSet, Splits, batches, split
from flatsparse.experiments.run.config import METHOD_OPTIONS, RHO_SCHEDULES, Run
from flatsparse.experiments.run.ddp import ALONE, Team
from flatsparse.experiments.run.lr import start_schedule
from flatsparse.experiments.run.task import NETWORKS, check_fit, check_takes, loss
from flatsparse.measure.flops import Cost, cost
from flatsparse.methods import kind_of, options_of, traits_of
from flatsparse.methods.traits import Scoring
from flatsparse.sam.looksam import LookSAM
from flatsparse.sam.optimizers import S2SAM, SAM
from flatsparse.schedules import DueSteps
from flatsparse.sparse.distributions import DISTRIBUTIONS
from flatsparse.sparse.training import SparseTraining

UPDATES = 10  # a run has at least so many mask updates


@dataclass
class Parts:
    """The live parts of a run, and the run with everything resolved.

    Attributes:
        own_period: the steps between updates that the method would have had, or that were asked for.
        net: the model, or what wraps it for several processes; training goes through it.
        fresh: makes another such model, with weights of its own.
        data: what the splits were taken from.
        gradient: of the step before, on steps that compare the two.
    """

    run: Run
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
    gradient: Tensor | None = None


def build(run: Run, team: Team = ALONE) -> Parts:
    """Make a run's data, network, optimizer and masks, all from its seed.

    Raises: InputError for what cannot be run, such as a batch that is too small for a team.
    """
    device = torch.device(run.device)
    data = load(run.data, run.data_dir)
    assert run.model is not None  # resolved
    check_fit(run.model, data)
    splits = split(
        data,
        train_size=run.train_size,
        validation_size=run.validation_size,
        label_noise=run.label_noise,
        seed=run.seed,
    )
    splits = dataclasses.replace(
        splits, train=splits.train.to(device), validation=splits.validation.to(device), test=splits.test.to(device)
    )
    torch.manual_seed(derive(run.seed, "model"))
    layout = torch.channels_last if run.channels_last else torch.contiguous_format
    channels = splits.train.shape[-1]  # or tokens in a sequence
    fresh = functools.partial(NETWORKS[run.model], num_classes=data.classes, in_channels=channels)
    smallest = min((len(splits.train) - 1) % run.batch_size + 1, run.batch_size)
    if smallest < team.size:
        raise InputError(
            f"the smallest batch has {smallest} images for {team.size} processes: give another --batch-size or --train-size"
        )
    model = fresh()
    check_takes(run.model, model, data.pool, smallest // team.size)
    model.to(device=device)
    model.to(memory_format=layout)  # type: ignore[call-overload]  # torch's own stubs leave this form out
    steps_per_epoch = math.ceil(len(splits.train) / run.batch_size)
    steps = run.whole_epochs * steps_per_epoch
    net = team.parallel(model)
    if run.compile:
        torch.compiler.reset()  # graphs of an earlier run in this process would not see this run's windows
        net = torch.compile(net)  # type: ignore[assignment]  # it gives a module for a module
    optimizer = _optimizer(run, model, steps)
    traits = traits_of(kind_of(run.method))
    own_period = getattr(kind_of(run.method)(), "every", None) if run.every is None else run.every
    run, options = _with_method_options(run, run.epochs * steps_per_epoch)
    run = dataclasses.replace(run, train_size=len(splits.train), validation_size=len(splits.validation))
    assert run.sparsity is not None  # resolved
    training = sparsify(
        net,
        optimizer,
        run.method,
        sparsity=run.sparsity if traits.takes_sparsity else None,
        steps=steps,
        seed=run.seed,
        include=run.include,
        exclude=run.exclude,
        layers=run.layers,
        **options,
        **_sample(run, splits, traits.scoring),
    )
    schedule = start_schedule(run, optimizer, steps_per_epoch)
    return Parts(
        run,
        own_period,
        model,
        net,
        optimizer,
        training,
        schedule,
        cost(model, splits.train.blank),
        splits,
        data.augmented and run.augmentation,
        data.classes,
        steps_per_epoch,
        fresh,
        data,
    )


def _sample(run: Run, splits: Splits, scoring: Scoring) -> dict[str, Any]:
    """The options by which a method gets what it scores weights on before training."""
    if scoring == "none":
        return {}
    shuffled = batches(splits.train, splits, run.batch_size, seed=derive(run.seed, "sample"))
    return {"batches": [next(shuffled)] if scoring == "batch" else shuffled, "loss_fn": loss}


def _optimizer(run: Run, model: nn.Module, steps: int) -> Optimizer:
    base: Optimizer
    if run.optimizer == "sgd":
        base = torch.optim.SGD(
            model.parameters(),
            lr=run.lr,
            momentum=run.momentum,
            weight_decay=run.weight_decay,
            nesterov=run.nesterov,
        )
    else:
        base = torch.optim.AdamW(model.parameters(), lr=run.lr, weight_decay=run.weight_decay)
    if run.sharpness == "none":
        return base
    rho = RHO_SCHEDULES[run.rho_schedule](run.rho, steps)
    options: dict[str, Any] = {"rho": rho, "adaptive": run.adaptive, "mask_perturbation": run.mask_perturbation}
    if run.sharpness == "sam":
        return SAM(base, **options)
    if run.sharpness == "looksam":
        return LookSAM(base, every=run.look_every, alpha=run.look_alpha, **options)
    direction = "previous" if run.sharpness == "s2sam" else run.sharpness
    return S2SAM(base, direction=direction, seed=run.seed, **options)


def _with_method_options(run: Run, steps: int) -> tuple[Run, dict[str, Any]]:
    """The run with its method's own options where it has none, and those options by name.

    A period is shortened so that there are ten updates, but not below two steps: an update can take the place of the
    weight step, and then some must be left. Longer training keeps the period: the steps are those without a multiplier.
    """
    method: Any = kind_of(run.method)()
    own = {name: getattr(method, name) for name in METHOD_OPTIONS if name in options_of(method)}
    if run.until is not None and "until" in own:
        method = dataclasses.replace(method, until=run.until)
    if own.get("every") is not None:
        every = min(own["every"], round(getattr(method, "until", 1.0) * steps) // UPDATES)
        while every > 2 and _updates(method, every, run, steps) < UPDATES:  # the period may lengthen on the way
            every -= 1
        own["every"] = max(2, every)
    if "distribution" in own:
        listed = {share: name for name, share in DISTRIBUTIONS.items()}
        if own["distribution"] in listed:
            own["distribution"] = listed[own["distribution"]]
        else:  # a method's own, which it brings with it
            del own["distribution"]
    given = {name: value for name in METHOD_OPTIONS if (value := getattr(run, name)) is not None}
    run = dataclasses.replace(run, **{**own, **given})
    return run, {**own, **given, **({"sums": True} if run.sums else {})}


def _updates(method: Any, every: int, run: Run, steps: int) -> int:
    assert run.sparsity is not None  # resolved
    rules = dataclasses.replace(method, every=every).plan(run.sparsity, steps).rules
    return DueSteps([rule.when for rule in rules], first=2, last=steps).count(0, steps)


def describe(parts: Parts) -> str:
    """The parts in a sentence."""
    when = ""
    if parts.training.plan.rules:
        steps = parts.run.whole_epochs * parts.steps_per_epoch
        due = DueSteps([rule.when for rule in parts.training.plan.rules], first=2, last=steps)
        when = f", masks updated {due.count(0, steps)} times"
    if parts.run.every is not None and parts.run.every != parts.own_period:
        when += f", every {parts.run.every} steps, not {parts.own_period}, so that {parts.run.epochs} epochs have ten"
    if parts.training.rounds > 1:
        when = f", {parts.training.rounds} rounds down to {parts.run.sparsity:.2%} sparse"
    report = parts.training.report()
    what = "sequences" if parts.splits.train.are_tokens else f"images of {parts.classes} classes"
    notes = "".join(f"\nwarning: {note}" for note in parts.data.notes)
    return (
        f"{len(parts.splits.train)} training, {len(parts.splits.validation)} validation and {len(parts.splits.test)} test"
        f" {what}; {report.active:,} of {report.total:,} prunable weights live ({report.sparsity:.2%} sparse){when}{notes}"
    )
