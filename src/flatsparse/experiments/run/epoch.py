"""One epoch of training: its steps, what is measured in them, and the record of it."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from flatsparse.common.seeds import derive
from flatsparse.experiments.clock import clock
from flatsparse.experiments.data.first_samples import first_samples
from flatsparse.experiments.data.loading import seed_all
from flatsparse.experiments.data.split import Batch
from flatsparse.experiments.run.build import Parts
from flatsparse.experiments.run.checkpoint import Progress
from flatsparse.experiments.run.evaluation import evaluate
from flatsparse.experiments.run.finish import check_finite_losses
from flatsparse.experiments.run.precision import autocast
from flatsparse.experiments.run.probe import Probe
from flatsparse.experiments.run.records import EpochRecord
from flatsparse.experiments.run.watcher import Watcher
from flatsparse.measure.flops import step_flops
from flatsparse.measure.topology import churn, health
from flatsparse.sam.stalesam import StaleSAM

COSINE_EVERY = 10  # steps between comparisons of consecutive gradients
LOOK_EVERY = 100  # steps between looks at the losses, so that a run that has diverged does not train on for hours
TWO_GRADIENTS = ("sam", "looksam")  # which decide themselves if a step needs a second gradient


@dataclass
class _Sums:
    """The sums of an epoch so far, of this process's samples; ``samples`` are those of all processes.

    Attributes:
        correct: right predictions; None for a task that has none.
        forward: FLOPs of one sample's forward pass under the present masks.
    """

    losses: Tensor
    correct: Tensor | None
    forward: float
    samples: int = 0
    churn: list[float] = field(default_factory=list)


def train_epoch(
    parts: Parts, progress: Progress, watcher: Watcher, probe: Probe | None, out: Path | None = None
) -> EpochRecord:
    """Train on every sample once, then evaluate on the validation samples. Raises Diverged for a loss that is not finite.

    What a network draws at random, as dropout does, follows the seed and the epoch, so that a resumed run draws the same.
    """
    run, train = parts.run, parts.task.splits.train
    steps = run.schedule.whole_epochs * parts.training.rounds * parts.steps_per_epoch
    sums = _Sums(
        losses=torch.zeros((), device=run.runtime.device),
        correct=None,
        forward=parts.cost.forward(parts.training.masks),
    )
    parts.net.train()
    _seed_epoch(parts, progress.epoch)
    started = clock()
    shuffled = train.batches(
        run.optim.part_size,
        augment=parts.task.augmented,
        seed=run.seed,
        epoch=progress.epoch,
        shard=parts.context.shard,
    )
    while batch := list(itertools.islice(shuffled, run.optim.parts)):
        parts.context.note(f"step {progress.step + 1}", 2 * progress.step + 1)
        _step(parts, progress, sums, batch)
        if probe:
            started += probe(parts, progress)  # as if no time had passed
        parts.optimizer.zero_grad()
        parts.schedule.step()
        progress.step += 1
        parts.context.note(f"the data of step {progress.step + 1}", 2 * progress.step)
        if progress.step % LOOK_EVERY == 0 and parts.context.size == 1:  # several processes look at the end, together
            check_finite_losses(parts, progress.epoch + 1, float(sums.losses), out=out)
        watcher.stepped(progress.step, steps, sums.samples / (clock() - started))
    progress.epoch += 1
    seconds = clock() - started
    progress.seconds += seconds
    return _record(parts, progress, sums, seconds)


def _seed_epoch(parts: Parts, epoch: int) -> None:
    """Seed all global generators of this process."""
    path = (parts.run.seed, "epoch", epoch, parts.context.rank)
    seed_all(*path)
    if parts.run.runtime.device.startswith("cuda"):
        torch.cuda.manual_seed(derive(*path))


def _step(parts: Parts, progress: Progress, sums: _Sums, batch: Sequence[Batch]) -> None:
    """Take one step on the parts of a batch, and add what it cost and gave."""
    training, device = parts.training, parts.run.runtime.device
    due = training.due(training.steps_taken + 1)
    before = {name: mask.clone() for name, mask in training.masks.items()} if due else {}
    began = clock(device)
    taken, samples = take_step(parts, batch), sum(part.whole for part in batch)
    if parts.average:
        parts.average.update(parts.model, training.zeroing() if due else None)
    progress.step_seconds.append(clock(device) - began)
    progress.train_flops += samples * step_flops(
        sums.forward, parts.cost.dense, taken.passes, due, momentum=training.plan.momentum is not None
    )
    if due:
        sums.forward = parts.cost.forward(training.masks)
        sums.churn.append(churn(before, training.masks))
    _compare_gradients(parts, progress)
    progress.gradient_evaluations += taken.passes
    sums.losses += taken.losses
    if taken.correct is not None:
        sums.correct = taken.correct if sums.correct is None else sums.correct + taken.correct
    sums.samples += samples


@dataclass(frozen=True)
class Taken:
    """A step that was taken.

    Attributes:
        losses: the sum over the samples of this process, in the first pass; and so the number of right predictions.
        passes: the number of its gradients; one of some of the samples counts for their share.
    """

    losses: Tensor
    correct: Tensor | None
    passes: float


def take_step(parts: Parts, batch: Sequence[Batch]) -> Taken:
    """Take one optimizer step on a batch, in one part or several, whose gradients add up to that of the batch."""
    weights = [parts.task.weight(part) for part in batch]
    shares = [weight / sum(weights) for weight in weights]
    passes: list[tuple[Tensor, Tensor | None]] = []

    def gradient() -> Tensor:
        found = [_backward(parts, part, share) for part, share in zip(batch, shares, strict=True)]
        corrects = [correct for _, correct in found if correct is not None]
        passes.append((_sum([losses for losses, _ in found]), _sum(corrects) if corrects else None))
        return passes[-1][0] / sum(part.samples for part in batch)

    shares_again: list[float] = []
    if parts.run.sharpness in TWO_GRADIENTS:
        parts.optimizer.step(gradient)  # type: ignore[arg-type]  # torch's stubs want a float of it
    elif isinstance(parts.optimizer, StaleSAM):
        gradient()
        parts.optimizer.step(part=lambda: shares_again.append(_gradient_of_share(parts, batch)))
    else:
        gradient()
        parts.optimizer.step()
    return Taken(*passes[0], len(passes) + sum(shares_again))


def _gradient_of_share(parts: Parts, batch: Sequence[Batch]) -> float:
    """Add the gradient of the first samples of a batch; return their share of it. Batch norm needs two samples."""
    samples = sum(part.samples for part in batch)
    count = left = min(samples, max(2, round(parts.run.perturbation.part * samples)))
    for part in batch:
        if left:
            taken = first_samples(part, min(left, part.samples))
            _backward(parts, taken, taken.samples / count)
            left -= taken.samples
    return count / samples


def _backward(parts: Parts, part: Batch, share: float) -> tuple[Tensor, Tensor | None]:
    """Add a part's share of the gradient of a batch; return the sum of its losses and its right predictions."""
    with autocast(parts.run):
        loss, correct = parts.task.train_loss(parts.net, part.content)
    # Processes take the mean of their gradients, whatever the number of their samples.
    share *= parts.context.size * part.samples / part.whole
    (loss * share if share != 1 else loss).backward()
    return loss.detach() * part.samples, correct


def _sum(terms: Sequence[Tensor]) -> Tensor:
    return terms[0] if len(terms) == 1 else torch.stack(list(terms)).sum(0)


def _compare_gradients(parts: Parts, progress: Progress) -> None:
    """Every few steps, note the cosine between the gradients of two consecutive steps, within an epoch."""
    phase = progress.step % parts.steps_per_epoch % COSINE_EVERY
    if phase > 1:
        return
    parameters = [p for group in parts.optimizer.param_groups for p in group["params"] if p.requires_grad]
    # One step's may be packed, and the next one's not.
    whole = {w.weight: w.whole for w in parts.training.masked_weights}
    # A parameter that the network left out in this step has no gradient, and may have one in the next.
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    gradients = [whole[p](g) if p in whole else g for p, g in zip(parameters, gradients, strict=True)]
    now = torch.cat([g.flatten() for g in gradients]).float()
    if phase == 1 and parts.gradient is not None:
        progress.cosines.append(float(F.cosine_similarity(parts.gradient, now, dim=0)))
    parts.gradient = now if phase == 0 else None


def _record(parts: Parts, progress: Progress, sums: _Sums, seconds: float) -> EpochRecord:
    """Evaluate on the validation images where it is time to, and return the record of an epoch that was trained."""
    run, training = parts.run, parts.training
    parts.context.sum(sums.losses, *([] if sums.correct is None else [sums.correct]))
    is_last = progress.epoch == run.schedule.whole_epochs * training.rounds
    validates = is_last or progress.epoch % run.runtime.validate_every == 0
    evaluated = None
    if validates and parts.context.is_main:
        parts.context.note(f"the validation after epoch {progress.epoch}")
        evaluated = evaluate(parts, parts.task.splits.validation)
    evaluated = parts.context.broadcast(evaluated)
    training.unpack()
    topology = health(training.masks, parts.model)
    return EpochRecord(
        epoch=progress.epoch,
        round=training.round if training.rounds > 1 else None,
        step=progress.step,
        train_loss=float(sums.losses) / sums.samples,
        train_accuracy=None if sums.correct is None else 100 * int(sums.correct) / sums.samples,
        validation_loss=evaluated.loss if evaluated else None,
        validation_accuracy=evaluated.scores.get("accuracy") if evaluated else None,
        validation_scores=evaluated.scores if evaluated and parts.task.scored else None,
        lr=float(parts.schedule.get_last_lr()[0]),
        sparsity=training.sparsity,
        updates=len(sums.churn),
        churn=statistics.fmean(sums.churn) if sums.churn else None,
        exploration=training.exploration,
        dead_filters=topology.dead / topology.filters,
        collapsed=topology.collapsed,
        images_per_second=sums.samples / seconds,
    )
