"""Measurements of a network on whole splits: loss and scores, worst-case sharpness, batch-norm statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from flatsparse.experiments.data.split import Batch, Batches, Split
from flatsparse.experiments.run.build import Parts
from flatsparse.experiments.run.config import ResolvedRun
from flatsparse.experiments.run.memory import USUAL, samples_at_once
from flatsparse.experiments.run.precision import autocast
from flatsparse.experiments.tasks.run_task import Evaluation, RunTask
from flatsparse.measure.sharpness import worst_case_sharpness

RADIUS, RADIUS_SAMPLES = 0.1, 1000  # of the worst-case sharpness: the same for every run, so that runs compare
Watch = Callable[[int], None]  # of the number of samples that were measured since the last call


def evaluate(parts: Parts, split: Split, *, detailed: bool = False, watch: Watch | None = None) -> Evaluation | None:
    """Return the mean loss and the scores of a run's network; None without samples."""
    return evaluated(parts.run, parts.task, parts.evaluated, split, detailed=detailed, watch=watch)


@torch.no_grad()
def evaluated(
    run: ResolvedRun,
    task: RunTask,
    model: nn.Module,
    split: Split,
    *,
    detailed: bool = False,
    watch: Watch | None = None,
) -> Evaluation | None:
    """Return the mean loss and the scores of any network of a run's task, in evaluation mode; None without samples."""
    if len(split) == 0:
        return None
    model.eval()
    size = run.runtime.eval_batch_size or samples_at_once(run, task, model, split)
    with autocast(run):
        return task.evaluate(model, _Watched(Batches(split, size), watch), len(split), detailed=detailed)


def renew_statistics(parts: Parts) -> None:
    """Replace batch norm's running statistics by means over the training samples at the present weights (Izmailov et al. 2018).

    Samples are augmented as in training.
    """
    run = parts.run
    batches = parts.task.splits.train.batches(run.optim.part_size, augment=parts.task.augmented, seed=run.seed)
    with autocast(run):
        torch.optim.swa_utils.update_bn(([batch.content] for batch in batches), _Statistics(parts.task, parts.model))


class _Statistics(nn.Module):
    """A network as a function of a whole batch, by its task's loss."""

    def __init__(self, task: RunTask, model: nn.Module) -> None:
        super().__init__()
        self.task, self.model = task, model

    def forward(self, inputs: object) -> object:
        return self.task.loss(self.model, inputs)


def worst_case_increase(parts: Parts, watch: Watch | None = None) -> float:
    """Return the worst-case sharpness of the loss on training samples at the present weights; see ``measure.sharpness``."""
    run, task = parts.run, parts.task
    split = task.splits.train.first(RADIUS_SAMPLES)
    size = (
        max(1, run.runtime.eval_batch_size // 4)
        if run.runtime.eval_batch_size
        else samples_at_once(run, task, parts.model, split, gradients=True, most=USUAL // 4)
    )

    def gradient() -> float:
        parts.model.zero_grad()
        total = 0.0
        for term in task.terms(parts.model, _Watched(Batches(split, size), watch), len(split)):
            term.backward()
            total += float(term.detach())
        return total

    parts.model.eval()
    return worst_case_sharpness(parts.model, parts.training.zeroing(), gradient, RADIUS)


class _Watched:
    """Batches whose samples are reported when they are first read."""

    def __init__(self, batches: Batches, watch: Watch | None) -> None:
        self.batches, self.watch, self.unread = batches, watch, len(batches.split)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            yield batch
            if self.watch and self.unread > 0:
                self.unread -= batch.samples
                self.watch(batch.samples)
