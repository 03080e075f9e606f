"""The end of a run: the trained network is measured, and all that a finished run leaves is written."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from flatsparse.common.errors import InputError
from flatsparse.common.masks_file import save_masks
from flatsparse.common.tensor_files import save_tensors
from flatsparse.experiments.run.build import Parts
from flatsparse.experiments.run.checkpoint import CHECKPOINT, Progress, save_checkpoint
from flatsparse.experiments.run.evaluation import RADIUS, evaluate, renew_statistics, worst_case_increase
from flatsparse.experiments.run.folder import MASKS, WEIGHTS, write_result
from flatsparse.experiments.run.metrics import REACHED, above_chance, macro, steps_to
from flatsparse.experiments.run.records import (
    EpochRecord,
    Flops,
    RunResult,
    Seconds,
    Sparsity,
    TopologyHealth,
    WorstCase,
)
from flatsparse.measure.topology import health


class Diverged(InputError):
    """The loss of a run is no longer finite."""


def check_finite_losses(parts: Parts, progress: Progress, *losses: float | None, out: Path | None = None) -> None:
    """Raise Diverged when a loss is not finite; ``out`` is where the checkpoint is from before that."""
    run = parts.run
    odd = [loss for loss in losses if loss is not None and not math.isfinite(loss)]
    if odd:
        checkpoint = f"; the last good checkpoint is kept in {out}" if out and (out / CHECKPOINT).is_file() else ""
        raise Diverged(
            f"the loss became {odd[0]} in epoch {progress.epoch}:"
            f" lower --lr {run.optim.lr:g}{'' if run.sharpness == 'none' else f' or --rho {run.rho:g}'}{checkpoint}"
        )


def finish(out: Path, parts: Parts, progress: Progress, test: bool) -> RunResult:
    """Measure the trained network and write everything; the result comes last, because it says that all is there."""
    if parts.run.runtime.batch_norm == "final":
        renew_statistics(parts)
    result = _measured(parts, progress, test)
    save_checkpoint(out, parts, progress)
    save_tensors(out / WEIGHTS, parts.model.state_dict(), {"format": "pt"})
    save_masks(out / MASKS, parts.training.masks, method=parts.run.pruning.method, step=progress.step)
    write_result(out, result)
    return result


def _measured(parts: Parts, progress: Progress, test: bool) -> RunResult:
    run, splits, model, training = parts.run, parts.splits, parts.model, parts.training
    report = training.report()
    counts = torch.zeros(parts.classes, parts.classes, dtype=torch.int64, device=run.runtime.device)
    test_accuracy, test_loss = evaluate(run, model, splits.test, splits, counts) if test else (None, None)
    train_accuracy, train_loss = evaluate(run, model, splits.train, splits)
    validation_accuracy, validation_loss = evaluate(run, model, splits.validation, splits)
    check_finite_losses(parts, progress, train_loss, validation_loss, test_loss)  # the first since the last step
    assert train_accuracy is not None  # a run has training images
    assert train_loss is not None
    return RunResult(
        method=run.pruning.method,
        sharpness=run.sharpness,
        rho=run.rho if run.sharpness != "none" else 0.0,
        model=run.model,
        data=run.dataset.data,
        data_set=parts.data.identity,
        seed=run.seed,
        test_accuracy=test_accuracy,
        test_loss=test_loss,
        macro=macro(counts) if test else None,
        above_chance=above_chance(counts) if test else None,
        train_accuracy=train_accuracy,
        train_loss=train_loss,
        generalization_gap=None if test_accuracy is None else train_accuracy - test_accuracy,
        validation_accuracy=validation_accuracy,
        validation_loss=validation_loss,
        epochs=progress.epoch,
        rounds=training.rounds,
        steps=progress.step,
        gradient_evaluations=progress.gradient_evaluations,
        steps_to={str(level): steps_to(progress.records, level) for level in REACHED},
        gradient_cosine=statistics.fmean(progress.cosines) if progress.cosines else None,
        ball=WorstCase(RADIUS, worst_case_increase(parts) if test else None),
        sparsity=Sparsity(report.sparsity, report.overall_sparsity),
        channels=training.channels,
        exploration=training.exploration,
        health=_health(parts, progress),
        flops=_flops(parts, progress),
        seconds=Seconds(progress.seconds, statistics.median(progress.step_seconds)),
        images_per_second=len(splits.train) * progress.epoch / progress.seconds,
    )


def _health(parts: Parts, progress: Progress) -> TopologyHealth:
    topology = health(parts.training.masks, parts.model)
    return TopologyHealth(_mean_churn(progress.records), topology.dead, topology.filters, topology.collapsed)


def _mean_churn(records: Sequence[EpochRecord]) -> float | None:
    """Return the mean over all updates of the run; None when there were none."""
    weighted = [(record.churn, record.updates) for record in records if record.churn is not None and record.updates]
    updates = sum(count for _, count in weighted)
    return sum(mean * count for mean, count in weighted) / updates if updates else None


def _flops(parts: Parts, progress: Progress) -> Flops:
    samples = len(parts.splits.train) * parts.run.schedule.epochs  # of dense training: one round of ordinary length
    return Flops(
        train=progress.train_flops,
        train_dense=3.0 * parts.cost.dense * samples,
        inference=parts.cost.forward(parts.training.masks),
        inference_dense=float(parts.cost.dense),
    )
