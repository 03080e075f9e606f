"""The splits of a data set that a run trains, chooses and tests on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from flatsparse.common.errors import InputError
from flatsparse.common.seeds import generator
from flatsparse.experiments.data.samples import DataSet, Samples, at_once


@dataclass(frozen=True)
class Splits:
    """The samples of one run, and mean and deviation of each channel of the training images."""

    train: Samples
    validation: Samples
    test: Samples
    mean: Tensor
    std: Tensor

    def to(self, device: torch.device) -> Splits:
        """Return the splits with their samples on a device."""
        samples = {name: getattr(self, name).to(device) for name in ("train", "validation", "test")}
        return dataclasses.replace(self, **samples)


def split(
    data: DataSet, *, train_size: int | None, validation_size: int | None, label_noise: float, seed: int
) -> Splits:
    """Return a run's splits of a data set.

    The validation images are the same for all seeds that hold out as many, so that none of these trains on what a choice was
    made on, and their labels stay right; which of the rest are trained on, and which of their labels are wrong, follows the seed.

    Args:
        train_size, validation_size: numbers of images; all the rest, and the data set's own, by default.
        label_noise: the fraction of training labels replaced by another class, each equally likely.

    Raises: InputError when the pool is too small.
    """
    held_out = data.validation_size if validation_size is None else validation_size
    apart = data.validation is not None
    source = data.validation or data.pool
    rest = len(data.pool) - (0 if apart else held_out)
    size = rest if train_size is None else train_size
    _check_sizes(data, size, rest, held_out)
    if label_noise and data.pool.are_tokens:
        raise InputError(f"--label-noise is for images, and '{data.name}' is of tokens: leave it out")
    order = torch.randperm(len(source), generator=generator("validation", data.name))
    free = torch.arange(rest) if apart else order[held_out:]
    train = data.pool.subset(free[torch.randperm(rest, generator=generator(seed, "subset"))[:size]])
    if train.are_tokens:
        mean, std = torch.zeros(1), torch.ones(1)  # which nothing reads
    else:
        labels = with_label_noise(train.labels, label_noise, data.classes, seed)
        train = dataclasses.replace(train, labels=labels)
        mean, std = _statistics(train)
    return Splits(train, source.subset(order[:held_out]), data.test, mean, std)


def _check_sizes(data: DataSet, size: int, rest: int, held_out: int) -> None:
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
