"""Fine-tuning of a finished run on another part of its data, and back on all of it: what is forgotten, and what returns."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import nn

from flatsparse.api import sparsify
from flatsparse.common.errors import InputError
from flatsparse.common.seeds import derive
from flatsparse.experiments.data.arrays import ArraySplit
from flatsparse.experiments.data.split import Split
from flatsparse.experiments.data.streamed import StreamedSplit
from flatsparse.experiments.run.load import Finished
from flatsparse.experiments.run.precision import autocast

EPOCHS, SHARE = 5, 0.2  # of each way, where no other number is given, and of the run's learning rate
DEFINITION = (
    f"finetune: {EPOCHS} epochs, or as many as its name says, at {SHARE:g} of the run's learning rate, constant, plain steps of"
    " its base optimizer under its masks, on the training images of the first half of the classes (of other tasks, the first"
    " half of the samples); back: as many epochs more on all training samples. Test samples are those of all classes"
)


def elsewhere_and_back(run: Finished, epochs: int) -> Iterator[nn.Module]:
    """Yield a copy of a run's network after training on a part of its data, then the same after training on all of them.

    Ours, after the fine-tuning of arXiv 2605.02105: all networks get the same steps, none of them sharpness-aware.

    Args:
        epochs: of each way.
    """
    model, train = copy.deepcopy(run.model), run.task.splits.train
    part = half(train)
    optimizer = _base(run, model)
    steps = epochs * (part.steps(run.run.optim.part_size) + train.steps(run.run.optim.part_size))
    training = sparsify(model, optimizer, "static", masks=run.masks, steps=steps) if run.masks else None
    for way, split in enumerate((part, train)):
        for epoch in range(epochs):
            _train_epoch(run, model, optimizer, split, epoch=way * epochs + epoch)
        yield model.eval()
    if training is not None:
        training.detach()


def half(split: Split) -> Split:
    """Return the samples of the first half of the classes that a split has; without classes, the first half of the samples."""
    if isinstance(split, (ArraySplit, StreamedSplit)):
        present = split.labels.unique()
        if len(present) > 1:
            chosen = torch.isin(split.labels, present[: len(present) // 2])
            return split.subset(chosen.nonzero().flatten().cpu())
    return split.first(max(1, len(split) // 2))


def _base(run: Finished, model: nn.Module) -> torch.optim.Optimizer:
    """Return the run's base optimizer for a network, at its share of the learning rate."""
    optim = run.run.optim
    rate = SHARE * optim.lr
    if optim.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=optim.weight_decay)
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=optim.momentum, weight_decay=optim.weight_decay)


def _train_epoch(
    run: Finished, model: nn.Module, optimizer: torch.optim.Optimizer, split: Split, *, epoch: int
) -> None:
    """Train on every sample once, in an order that follows the run's seed."""
    model.train()
    seed = derive(run.run.seed, "fine-tuning")
    torch.manual_seed(derive(seed, "epoch", epoch))
    for batch in split.batches(run.run.optim.part_size, seed=seed, epoch=epoch, augment=run.task.augmented):
        with autocast(run.run):
            loss = run.task.loss(model, batch.content)
        if not bool(loss.detach().isfinite()):
            raise InputError(f"'{run.folder}' could not be fine-tuned: its loss is {float(loss.detach())}")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
