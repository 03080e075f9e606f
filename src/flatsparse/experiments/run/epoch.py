"""One epoch of training: its steps, what is measured in them, and the record of it."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from flatsparse.experiments.clock import clock
from flatsparse.experiments.data.batches import batches
from flatsparse.experiments.run import task
from flatsparse.experiments.run.build import Parts
from flatsparse.experiments.run.checkpoint import Progress
from flatsparse.experiments.run.evaluation import evaluate
from flatsparse.experiments.run.precision import autocast
from flatsparse.experiments.run.probe import Probe
from flatsparse.experiments.run.records import EpochRecord
from flatsparse.experiments.run.watcher import Watcher
from flatsparse.measure.flops import step_flops
from flatsparse.measure.topology import churn, health

COSINE_EVERY = 10  # steps between comparisons of consecutive gradients
TWO_GRADIENTS = ("sam", "looksam")  # which decide themselves if a step needs a second gradient


@dataclass
class _Sums:
    """The sums of an epoch so far, of this process's samples; ``images`` are those of all processes.

    Attributes:
        forward: FLOPs of one sample's forward pass under the present masks.
    """

    losses: Tensor
    correct: Tensor
    forward: float
    images: int = 0
    churn: list[float] = field(default_factory=list)


def train_epoch(parts: Parts, progress: Progress, watcher: Watcher, probe: Probe | None) -> EpochRecord:
    """Train on every image once, then evaluate on the validation images."""
    run, train = parts.run, parts.splits.train
    steps = run.schedule.whole_epochs * parts.training.rounds * parts.steps_per_epoch
    sums = _Sums(
        losses=torch.zeros((), device=run.runtime.device),
        correct=torch.zeros((), dtype=torch.int64, device=run.runtime.device),
        forward=parts.cost.forward(parts.training.masks),
    )
    parts.net.train()
    started = time.perf_counter()
    shuffled = batches(
        train,
        parts.splits,
        run.optim.batch_size,
        augment=parts.augment,
        seed=run.seed,
        epoch=progress.epoch,
        shard=parts.context.shard,
    )
    for inputs, targets in shuffled:
        size = min(run.optim.batch_size, len(train) - sums.images)  # of the whole batch
        _step(parts, progress, sums, inputs, targets, size)
        if probe:
            started += probe(parts, progress)  # as if no time had passed
        parts.optimizer.zero_grad()
        parts.schedule.step()
        progress.step += 1
        watcher.stepped(progress.step, steps, sums.images / (time.perf_counter() - started))
    progress.epoch += 1
    seconds = time.perf_counter() - started
    progress.seconds += seconds
    return _record(parts, progress, sums, seconds)


def _step(parts: Parts, progress: Progress, sums: _Sums, inputs: Tensor, targets: Tensor, size: int) -> None:
    """Take one step, and add what it cost and gave."""
    training, device = parts.training, parts.run.runtime.device
    due = training.due(training.steps_taken + 1)
    before = {name: mask.clone() for name, mask in training.masks.items()} if due else {}
    began = clock(device)
    loss, outputs, passes = take_step(parts, inputs, targets, weight=parts.context.size * len(inputs) / size)
    progress.step_seconds.append(clock(device) - began)
    progress.train_flops += size * step_flops(
        sums.forward, parts.cost.dense, passes, due, momentum=training.plan.momentum is not None
    )
    if due:
        sums.forward = parts.cost.forward(training.masks)
        sums.churn.append(churn(before, training.masks))
    _compare_gradients(parts, progress)
    progress.gradient_evaluations += passes
    sums.losses += loss.detach() * len(inputs)
    sums.correct += task.correct(outputs, targets)
    sums.images += size


def take_step(parts: Parts, inputs: Tensor, targets: Tensor, weight: float = 1.0) -> tuple[Tensor, Tensor, int]:
    """Take one optimizer step; return loss and outputs of its first forward pass, and the number of gradients it took.

    Args:
        weight: of this process's mean loss in the mean over processes, 1 when all have as many images.
    """
    run = parts.run
    passes: list[tuple[Tensor, Tensor]] = []

    def gradient() -> Tensor:
        with autocast(run):
            outputs = parts.net(inputs)
            loss = task.loss(outputs, targets, label_smoothing=run.optim.label_smoothing)
        (loss * weight if weight != 1 else loss).backward()
        passes.append((loss.detach(), outputs.detach()))
        return loss

    if run.sharpness in TWO_GRADIENTS:
        parts.optimizer.step(gradient)  # type: ignore[arg-type]  # torch's stubs want a float of it
    else:
        gradient()
        parts.optimizer.step()
    return *passes[0], len(passes)


def _compare_gradients(parts: Parts, progress: Progress) -> None:
    """Every few steps, note the cosine between the gradients of two consecutive steps, within an epoch."""
    phase = progress.step % parts.steps_per_epoch % COSINE_EVERY
    if phase > 1:
        return
    gradients = [p.grad.flatten() for g in parts.optimizer.param_groups for p in g["params"] if p.grad is not None]
    now = torch.cat(gradients).float()
    if phase == 1 and parts.gradient is not None:
        progress.cosines.append(float(F.cosine_similarity(parts.gradient, now, dim=0)))
    parts.gradient = now if phase == 0 else None


def _record(parts: Parts, progress: Progress, sums: _Sums, seconds: float) -> EpochRecord:
    """Evaluate on the validation images where it is time to, and return the record of an epoch that was trained."""
    run, training, splits = parts.run, parts.training, parts.splits
    parts.context.sum(sums.losses, sums.correct)
    is_last = progress.epoch == run.schedule.whole_epochs * training.rounds
    validates = is_last or progress.epoch % run.runtime.validate_every == 0
    evaluated: tuple[float | None, float | None] = (None, None)
    if validates and parts.context.is_main:
        evaluated = evaluate(run, parts.model, splits.validation, splits)
    validation_accuracy, validation_loss = parts.context.broadcast(evaluated)
    topology = health(training.masks, parts.model)
    return EpochRecord(
        epoch=progress.epoch,
        round=training.round if training.rounds > 1 else None,
        step=progress.step,
        train_loss=float(sums.losses) / sums.images,
        train_accuracy=100 * int(sums.correct) / splits.train.targets,
        validation_loss=validation_loss,
        validation_accuracy=validation_accuracy,
        lr=float(parts.schedule.get_last_lr()[0]),
        sparsity=training.sparsity,
        updates=len(sums.churn),
        churn=statistics.fmean(sums.churn) if sums.churn else None,
        exploration=training.exploration,
        dead_filters=topology.dead / topology.filters,
        collapsed=topology.collapsed,
        images_per_second=sums.images / seconds,
    )
