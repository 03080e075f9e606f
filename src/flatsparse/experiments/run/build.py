"""The parts of a run, made from its configuration alone: data, network, optimizer, masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from flatsparse.acceleration.accelerate import accelerate
from flatsparse.api import sparsify
from flatsparse.common.channels_last import unsafe_in_channels_last
from flatsparse.common.errors import InputError
from flatsparse.common.seeds import derive
from flatsparse.experiments.data.loading import seed_all, seeded
from flatsparse.experiments.run.average import WeightAverage
from flatsparse.experiments.run.config import ResolvedRun, change
from flatsparse.experiments.run.ddp import SINGLE, DistContext
from flatsparse.experiments.run.initial_weights import load_initial
from flatsparse.experiments.run.learning_rate import start_schedule
from flatsparse.experiments.run.method import with_method_options
from flatsparse.experiments.run.optimizer import sharpness_aware
from flatsparse.experiments.tasks.make import make_task
from flatsparse.experiments.tasks.run_task import RunTask
from flatsparse.measure.flops import Cost, cost_of
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
        average: of the weights, where the run has one; it is evaluated in the place of ``model``.
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
    task: RunTask
    steps_per_epoch: int
    average: WeightAverage | None = None
    context: DistContext = SINGLE
    gradient: Tensor | None = None

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated and saved: the trained one, or its moving average."""
        return self.average.model if self.average else self.model


def build(run: ResolvedRun, context: DistContext = SINGLE, task: RunTask | None = None) -> Parts:
    """Return a run's data, network, optimizer and masks, all made from its seed.

    Args:
        run: what is built.
        context: the processes that train it.
        task: what it works on, on the run's device; by default what its settings ask for.

    Raises: InputError for what cannot be run, such as a batch that is too small for the processes.
    """
    task = task_of(run) if task is None else task
    model, net = make_model(run, task, context)
    # Its copy of the network is made before that has hooks.
    average = None if run.optim.ema is None else WeightAverage(model, run.optim.ema)
    splits = task.splits
    steps_per_epoch = -(-splits.train.steps(run.optim.part_size) // run.optim.parts)
    steps = run.schedule.whole_epochs * steps_per_epoch
    optimizer = make_optimizer(run, model, steps)
    period = run.pruning.every
    own_period = getattr(kind_of(run.pruning.method)(), "every", None) if period is None else period
    run, options = with_method_options(run, run.schedule.epochs * steps_per_epoch)
    run = change(run, train_size=len(splits.train), validation_size=len(splits.validation))
    training = make_sparse(run, net, optimizer, steps, task, options)
    if run.runtime.accelerate:
        accelerate(model, training, packed=average is None)  # an average over steps is of whole weights
    forward, samples = task.sample_forward(model)
    return Parts(
        run=run,
        own_period=own_period,
        model=model,
        net=net,
        optimizer=optimizer,
        training=training,
        schedule=start_schedule(run, optimizer, steps_per_epoch),
        cost=cost_of(model, forward, samples),
        task=task,
        steps_per_epoch=steps_per_epoch,
        average=average,
        context=context,
    )


def task_of(run: ResolvedRun) -> RunTask:
    """Return what a run works on, on the run's device."""
    task = make_task(
        run.dataset,
        model=run.model,
        seed=run.seed,
        label_noise=run.label_noise,
        label_smoothing=run.optim.label_smoothing,
    )
    return task.to(torch.device(run.runtime.device))


def initial_model(run: ResolvedRun, task: RunTask) -> nn.Module:
    """Return a run's random network, on the CPU: also what its state dict leaves out is drawn by the seed."""
    with seeded(run.seed, "model"):
        return task.fresh()


def make_model(run: ResolvedRun, task: RunTask, context: DistContext = SINGLE) -> tuple[nn.Module, nn.Module]:
    """Return a run's network, and the same as it is trained: wrapped for several processes, or compiled."""
    size = run.optim.part_size
    smallest = task.splits.train.smallest(size)
    if smallest < context.size:
        raise InputError(
            f"the smallest batch has {smallest} {task.unit} for {context.size} processes: give another"
            " --batch-size, --accumulate or --train-size"
        )
    torch.manual_seed(derive(run.seed, "model"))
    seed_all(run.seed, "model")  # of numpy's and Python's generators too
    model = task.fresh()
    task.check(model, smallest // context.size)
    load_initial(run, model)
    model.to(device=run.runtime.device)
    layout = torch.channels_last if run.runtime.channels_last else torch.contiguous_format
    odd = unsafe_in_channels_last(model) if run.runtime.channels_last and run.runtime.device == "cpu" else None
    if odd is not None:
        raise InputError(
            f"--channels-last is not for '{odd}' of {run.model} on a CPU, a 1x1 convolution with a stride and few input channels:"
            " its gradient would be wrong or end the process; leave it out"
        )
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
        own: dict[str, Any] = {} if optim.betas is None else {"betas": optim.betas}
        return torch.optim.AdamW(model.parameters(), lr=optim.lr, weight_decay=optim.weight_decay, **own)
    return torch.optim.SGD(
        model.parameters(),
        lr=optim.lr,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        nesterov=optim.nesterov,
    )


def make_sparse(
    run: ResolvedRun, net: nn.Module, optimizer: Optimizer, steps: int, task: RunTask, options: dict[str, Any]
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
        **_sample(run, task, traits.scoring),
    )


def _sample(run: ResolvedRun, task: RunTask, scoring: Scoring) -> dict[str, Any]:
    """Return the training data that a method scores weights on before training, as its options."""
    if scoring == "none":
        return {}
    shuffled = task.splits.train.batches(run.optim.batch_size, seed=derive(run.seed, "sample"))
    return task.scoring(shuffled, several=scoring == "batches")


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
    notes = "".join(f"\nwarning: {note}" for note in parts.task.notes)
    splits = parts.task.splits
    return (
        f"{len(splits.train)} training, {len(splits.validation)} validation and {len(splits.test)} test {parts.task.samples};"
        f" {report.active:,} of {report.total:,} prunable weights active ({report.sparsity:.2%} sparse){when}{notes}"
    )
