"""The end of a run: the trained network is measured, and all that a finished run leaves is written."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from flatsparse.common.errors import InputError
from flatsparse.common.files import write_atomic
from flatsparse.common.masks_file import save_masks
from flatsparse.common.tensor_files import save_tensors
from flatsparse.experiments.run.build import Parts
from flatsparse.experiments.run.checkpoint import CHECKPOINT, Progress, save_checkpoint
from flatsparse.experiments.run.evaluation import (
    RADIUS,
    RADIUS_SAMPLES,
    evaluate,
    renew_statistics,
    worst_case_increase,
)
from flatsparse.experiments.run.folder import MASKS, WEIGHTS, write_result
from flatsparse.experiments.run.metrics import REACHED, steps_to
from flatsparse.experiments.run.records import (
    EpochRecord,
    Flops,
    RunResult,
    Seconds,
    Sparsity,
    TopologyHealth,
    WorstCase,
)
from flatsparse.experiments.run.watcher import Watcher
from flatsparse.experiments.tasks.run_task import Evaluation
from flatsparse.measure.sharpness import STEPS
from flatsparse.measure.topology import health


class Diverged(InputError):
    """The loss of a run is no longer finite."""


def check_finite_losses(parts: Parts, epoch: int, *losses: float | None, out: Path | None = None) -> None:
    """Raise Diverged when a loss is not finite; ``out`` is where the checkpoint is from before that."""
    run = parts.run
    odd = [loss for loss in losses if loss is not None and not math.isfinite(loss)]
    if odd:
        checkpoint = f"; the last good checkpoint is kept in {out}" if out and (out / CHECKPOINT).is_file() else ""
        raise Diverged(
            f"the loss became {odd[0]} in epoch {epoch}:"
            f" lower --lr {run.optim.lr:g}{'' if run.sharpness == 'none' else f' or --rho {run.rho:g}'}, with another --out"
            f"{checkpoint}"
        )


def finish(out: Path, parts: Parts, progress: Progress, test: bool, watcher: Watcher) -> RunResult:
    """Write the trained network, measure it and write the result, which comes last, because it says that all is there.

    What is trained is safe before it is measured, so that a failure here costs nothing but the measurements.
    """
    save_checkpoint(out, parts, progress)
    if parts.average:
        parts.model.load_state_dict(parts.average.model.state_dict())
        parts.average = None  # from here on it is the network
    if parts.run.runtime.batch_norm == "final":
        renew_statistics(parts)
    save_tensors(out / WEIGHTS, parts.model.state_dict(), {"format": "pt"})
    save_masks(out / MASKS, parts.training.masks, method=parts.run.pruning.method, step=progress.step)
    for name, content in parts.task.files.items():
        write_atomic(out / name, content)
    return write_result(out, _measured(parts, progress, test, watcher))


def _measured(parts: Parts, progress: Progress, test: bool, watcher: Watcher) -> RunResult:
    run, task, training = parts.run, parts.task, parts.training
    splits, report = task.splits, training.report()
    train_split = splits.train.measured()
    whole = len(train_split) + len(splits.validation) + (len(splits.test) + _ball_samples(parts) if test else 0)
    done = 0

    def watch(samples: int) -> None:
        nonlocal done
        done += samples
        watcher.measured(done, whole)

    tested = evaluate(parts, splits.test, detailed=True, watch=watch) if test else None
    trained = evaluate(parts, train_split, watch=watch)
    validated = evaluate(parts, splits.validation, watch=watch)
    assert trained is not None  # a run has training samples
    losses = [evaluation.loss if evaluation else None for evaluation in (trained, validated, tested)]
    check_finite_losses(parts, progress.epoch, *losses)  # the first since the last step
    scored = task.scored
    return RunResult(
        method=run.pruning.method,
        sharpness=run.sharpness,
        rho=run.rho if run.sharpness != "none" else 0.0,
        model=run.model if run.dataset.task is None else type(parts.model).__name__,
        data=run.dataset.title,
        data_set=task.identity,
        task=run.dataset.task,
        better=task.better if scored else None,
        scores=tested.scores if scored and tested else None,
        train_scores=trained.scores if scored else None,
        validation_scores=validated.scores if scored and validated else None,
        seed=run.seed,
        test_accuracy=_accuracy(tested),
        test_loss=tested.loss if tested else None,
        macro=tested.details.get("macro") if tested else None,
        signature=tested.details.get("signature") if tested else None,
        above_chance=tested.details.get("above_chance") if tested else None,
        train_accuracy=_accuracy(trained),
        train_loss=trained.loss,
        generalization_gap=trained.value - tested.value if tested else None,
        validation_accuracy=_accuracy(validated),
        validation_loss=validated.loss if validated else None,
        epochs=progress.epoch,
        rounds=training.rounds,
        steps=progress.step,
        gradient_evaluations=progress.gradient_evaluations,
        steps_to={} if scored else {str(level): steps_to(progress.records, level) for level in REACHED},
        gradient_cosine=statistics.fmean(progress.cosines) if progress.cosines else None,
        ball=WorstCase(RADIUS, worst_case_increase(parts, watch) if test else None),
        sparsity=Sparsity(report.sparsity, report.overall_sparsity),
        channels=training.channels,
        exploration=training.exploration,
        health=_health(parts, progress),
        flops=_flops(parts, progress),
        seconds=Seconds(progress.seconds, statistics.median(progress.step_seconds)),
        images_per_second=len(splits.train) * progress.epoch / progress.seconds,
    )


def _ball_samples(parts: Parts) -> int:
    """Return the samples that go through the network for the worst-case sharpness."""
    return (1 + STEPS) * min(RADIUS_SAMPLES, len(parts.task.splits.train))


def _accuracy(evaluation: Evaluation | None) -> float | None:
    """Return the accuracy, of a task that has one."""
    return evaluation.scores.get("accuracy") if evaluation else None


def _health(parts: Parts, progress: Progress) -> TopologyHealth:
    topology = health(parts.training.masks, parts.model)
    return TopologyHealth(_mean_churn(progress.records), topology.dead, topology.filters, topology.collapsed)


def _mean_churn(records: Sequence[EpochRecord]) -> float | None:
    """Return the mean over all updates of the run; None when there were none."""
    weighted = [(record.churn, record.updates) for record in records if record.churn is not None and record.updates]
    updates = sum(count for _, count in weighted)
    return sum(mean * count for mean, count in weighted) / updates if updates else None


def _flops(parts: Parts, progress: Progress) -> Flops:
    samples = (
        len(parts.task.splits.train) * parts.run.schedule.epochs
    )  # of dense training: one round of ordinary length
    return Flops(
        train=progress.train_flops,
        train_dense=3.0 * parts.cost.dense * samples,
        inference=parts.cost.forward(parts.training.masks),
        inference_dense=float(parts.cost.dense),
    )
