"""The splits of a data set of images that a run trains, chooses and tests on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flatsparse.common.errors import InputError
from flatsparse.common.seeds import generator
from flatsparse.experiments.data.arrays import ArraySplit
from flatsparse.experiments.data.samples import DataSet, LabelledSet, S, Samples, at_once
from flatsparse.experiments.data.split import Splits, chosen_samples


def split(
    data: DataSet, *, train_size: int | None, validation_size: int | None, label_noise: float, seed: int
) -> Splits:
    """Return a run's splits of a data set in memory; see ``divided``."""
    parts = divided(data, train_size=train_size, validation_size=validation_size, label_noise=label_noise, seed=seed)
    mean, std = _statistics(parts[0])
    return Splits(*(ArraySplit(samples, mean, std) for samples in parts))


def divided(
    data: LabelledSet[S], *, train_size: int | None, validation_size: int | None, label_noise: float, seed: int
) -> tuple[S, S, S]:
    """Return a run's images for training, validation and test; see ``chosen_samples``. Only training labels become wrong.

    Args:
        train_size, validation_size: numbers of images; all the rest, and the data set's own, by default.
        label_noise: the fraction of training labels replaced by another class, each equally likely.

    Raises: InputError when the pool is too small.
    """
    held_out = data.validation_size if validation_size is None else validation_size
    apart = data.validation is not None
    source = data.pool if data.validation is None else data.validation
    rest = len(data.pool) - (0 if apart else held_out)
    size = rest if train_size is None else train_size
    _check_sizes(data, size, rest, held_out)
    chosen, held = chosen_samples(
        len(data.pool),
        held_out=held_out,
        size=size,
        seed=seed,
        name=data.name,
        apart=len(source) if apart else None,
    )
    train = data.pool.subset(chosen)
    train = train.relabelled(with_label_noise(train.labels, label_noise, data.classes, seed))
    return train, source.subset(held), data.test


def _check_sizes(data: LabelledSet[Any], size: int, rest: int, held_out: int) -> None:
    """Raise InputError when a data set has fewer images than are to be trained on or held out."""
    apart = data.validation is not None
    if data.validation is not None and not 0 <= held_out <= len(data.validation):
        raise InputError(
            f"cannot hold out {held_out} of the {len(data.validation)} validation images of '{data.name}': give a smaller"
            " --validation-size"
        )
    if not 0 < size <= rest or held_out < 0:
        if not apart and held_out >= len(data.pool):
            raise InputError(
                f"cannot hold out {held_out} of the {len(data.pool)} images of '{data.name}': give a smaller --validation-size"
            )
        raise InputError(
            f"cannot take {size} training and {held_out} validation images from the {len(data.pool)} of '{data.name}':"
            f" give --train-size of at most {max(rest, 0)}, or a smaller --validation-size"
        )


def _statistics(train: Samples) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of each channel, on a scale of 0 to 1; from counts, so that they are exact on any machine."""
    level = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.zeros(train.shape[-1], 256, dtype=torch.int64)
    for index in torch.arange(len(train)).split(at_once(train)):  # counting takes eight times an image's memory
        channels = train.at(index).unbind(-1)
        counts += torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in channels])
    share = counts.double() / counts.sum(1, keepdim=True)
    mean = share @ level
    std = (share @ level**2 - mean**2).clamp(min=1e-6).sqrt()  # a constant channel is left as it is
    return mean.float(), std.float()


def with_label_noise(labels: Tensor, fraction: float, classes: int, seed: int) -> Tensor:
    """Return labels of which exactly ``round(fraction·n)`` are wrong, each any other class with equal chance (symmetric)."""
    source = generator(seed, "label noise")
    wrong = torch.randperm(len(labels), generator=source)[: round(fraction * len(labels))]
    shift = torch.randint(1, classes, (len(wrong),), generator=source)
    noisy = labels.clone()
    noisy[wrong] = (labels[wrong] + shift) % classes
    return noisy
