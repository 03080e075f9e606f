"""Measurements of a network on whole data sets: accuracy and loss, worst-case sharpness, batch-norm statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flatsparse.experiments.data.batches import batches
from flatsparse.experiments.data.samples import Samples, at_once
from flatsparse.experiments.data.splits import Splits
from flatsparse.experiments.run import task
from flatsparse.experiments.run.build import Parts
from flatsparse.experiments.run.config import ResolvedRun
from flatsparse.experiments.run.metrics import confusion
from flatsparse.experiments.run.precision import autocast
from flatsparse.measure.sharpness import worst_case_sharpness

RADIUS, RADIUS_IMAGES = 0.1, 1000  # of the worst-case sharpness: the same for every run, so that runs compare


@torch.no_grad()
def evaluate(
    run: ResolvedRun, model: nn.Module, images: Samples, splits: Splits, counts: Tensor | None = None
) -> tuple[float | None, float | None]:
    """Return accuracy in percent and mean loss, in evaluation mode; None and None without images.

    Args:
        counts: int64 (classes, classes), to which the ``confusion`` of these images is added.
    """
    if len(images) == 0:
        return None, None
    model.eval()
    correct, loss = 0, 0.0
    for inputs, targets in batches(images, splits, run.runtime.eval_batch_size or at_once(images)):
        with autocast(run):
            outputs = model(inputs).float()
        correct += int(task.correct(outputs, targets))
        loss += float(task.loss(outputs, targets, reduction="sum"))
        if counts is not None:
            counts += confusion(outputs, targets, len(counts))
    return 100 * correct / images.targets, loss / images.targets


def renew_statistics(parts: Parts) -> None:
    """Replace batch norm's running statistics by means over the training images at the present weights (Izmailov et al. 2018).

    Images are augmented as in training.
    """
    run = parts.run
    batched = batches(parts.splits.train, parts.splits, run.optim.batch_size, augment=parts.augment, seed=run.seed)
    with autocast(run):
        torch.optim.swa_utils.update_bn(batched, parts.model)


def worst_case_increase(parts: Parts) -> float:
    """Return the worst-case sharpness of the loss on training images at the present weights; see ``measure.sharpness``."""
    run = parts.run
    images = parts.splits.train.take(torch.arange(min(RADIUS_IMAGES, len(parts.splits.train))))
    size = max(1, (run.runtime.eval_batch_size or at_once(images)) // 4)

    def gradient() -> float:
        parts.model.zero_grad()
        total = 0.0
        for inputs, targets in batches(images, parts.splits, size):
            loss = task.loss(parts.model(inputs).float(), targets, reduction="sum") / images.targets
            loss.backward()
            total += float(loss.detach())
        return total

    parts.model.eval()
    return worst_case_sharpness(parts.model, parts.training.zeroing(), gradient, RADIUS)
