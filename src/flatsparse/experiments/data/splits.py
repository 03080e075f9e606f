"""Data sets as tensors in memory, splits that keep choices and tests apart, and batches without per-image code."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flatsparse.common.errors import InputError
from flatsparse.common.seeds import generator

IGNORED = -100  # the label of a place in a sequence where nothing is asked for: what torch's cross_entropy leaves out


@dataclass(frozen=True)
class Images:
    """Images, uint8 (N, H, W, C), and their labels, int64 (N); or sequences of tokens and their labels, int64 (N, length).

    Attributes:
        stored: the images, or more than these.
        rows: which of ``stored`` these are, in their order; all by default. So the splits of a set share its memory.
    """

    stored: Tensor
    labels: Tensor
    rows: Tensor | None = None

    @property
    def images(self) -> Tensor:
        """The images alone: a copy where ``stored`` has more."""
        return self.stored if self.rows is None else self.stored[self.rows]

    @property
    def shape(self) -> torch.Size:
        """Of one image: height, width and channels; or a sequence's length."""
        return self.stored.shape[1:]

    @property
    def are_tokens(self) -> bool:
        return self.stored.ndim == 2

    @property
    def targets(self) -> int:
        """How many answers are asked for: one an image, or several a sequence."""
        return int((self.labels != IGNORED).sum())

    @property
    def blank(self) -> Tensor:
        """One input of zeros, as ``batches`` would give it."""
        if self.are_tokens:
            return torch.zeros_like(self.stored[:1])
        return self.stored.new_zeros(1, self.shape[-1], *self.shape[:2], dtype=torch.float32)

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, index: Tensor) -> Tensor:
        """The images at some places, copied."""
        return self.stored[index if self.rows is None else self.rows[index]]

    def take(self, index: Tensor) -> Images:
        """Those at some places, copied."""
        return Images(self.at(index), self.labels[index])

    def subset(self, index: Tensor) -> Images:
        """Those at some places, in the memory of these."""
        return Images(self.stored, self.labels[index], index if self.rows is None else self.rows[index])

    def to(self, device: torch.device) -> Images:
        """These on a device; there they have no more than themselves."""
        if self.stored.device == device:
            return self
        return Images(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class DataSet:
    """A data set as its source gives it.

    Attributes:
        pool: what training and validation are taken from.
        test: read once, at the end of a run.
        classes: how many.
        augmented: whether training crops (after padding by 4) and flips.
        validation_size: images that are held out unless a run says otherwise.
        validation: what is held out, of a source that says so; by default images of the pool.
        source: where it came from.
        notes: what its reader should know, a sentence each.
    """

    name: str
    pool: Images
    test: Images
    classes: int
    augmented: bool
    validation_size: int
    validation: Images | None = None
    source: str = "embedded"
    notes: tuple[str, ...] = ()

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over shapes, labels and pixels in their order: sets that share it are the same, whatever file they came in."""
        told = hashlib.sha256()
        for images in (self.pool, self.test, *([] if self.validation is None else [self.validation])):
            told.update(repr((tuple(images.stored.shape), self.classes)).encode())
            for tensor in (images.labels, images.stored):
                told.update(tensor.contiguous().numpy().data)
        return told.hexdigest()

    @property
    def summary(self) -> str:
        """What was read, in a line."""
        apart = "" if self.validation is None else f", {len(self.validation):,} validation images"
        of_what = ("sequences",) * 2 if self.pool.are_tokens else (f"images of {self.classes} classes", "images")
        return f"{self.name}: {len(self.pool):,} training {of_what[0]}{apart}, {len(self.test):,} test {of_what[1]}"

    @property
    def identity(self) -> dict[str, str]:
        """What a run's files say of it."""
        return {"name": self.name, "source": self.source, "fingerprint": self.fingerprint}

    def check_same(self, record: Mapping[str, Any], place: str) -> None:
        """Raise InputError when a place's record tells of other images or labels; records of old tell of none."""
        theirs = record.get("data_set")
        if theirs is not None and theirs["fingerprint"] != self.fingerprint:
            raise InputError(
                f"{place} is of other data: '{self.name}' from {self.source} is not what it was made on, from"
                f" {theirs['source']}: put that back, or name its place with --data-dir"
            )


@dataclass(frozen=True)
class Splits:
    """What one run sees."""

    train: Images
    validation: Images
    test: Images
    mean: Tensor
    std: Tensor

    def to(self, device: torch.device) -> Splits:
        """Return the splits with their images on a device."""
        images = {name: getattr(self, name).to(device) for name in ("train", "validation", "test")}
        return dataclasses.replace(self, **images)


def split(
    data: DataSet, *, train_size: int | None, validation_size: int | None, label_noise: float, seed: int
) -> Splits:
    """Take a run's splits from a data set.

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
    if apart and not 0 <= held_out <= len(source):
        raise InputError(
            f"cannot hold out {held_out} of the {len(source)} validation images of '{data.name}': give a smaller"
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


def _statistics(train: Images) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, on a scale of 0 to 1; from counts, so that they are exact on any machine."""
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
    """Labels of which exactly ``round(fraction·n)`` are wrong, each any other class with equal chance (symmetric noise)."""
    source = generator(seed, "label noise")
    wrong = torch.randperm(len(labels), generator=source)[: round(fraction * len(labels))]
    shift = torch.randint(1, classes, (len(wrong),), generator=source)
    noisy = labels.clone()
    noisy[wrong] = (labels[wrong] + shift) % classes
    return noisy


def batches(
    data: Images,
    splits: Splits,
    size: int,
    *,
    augment: bool = False,
    seed: int | None = None,
    epoch: int = 0,
    shard: slice = slice(None),
) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalized batches (N, C, H, W) in channels-last order, or token numbers (N, length) as they are, with their labels.

    Args:
        data: on the device where the batches shall be.
        splits: whose mean and deviation normalize.
        size: images a batch; the last may be smaller.
        augment: crop at random after padding by 4 zeros, and flip half of the images.
        seed: shuffles, and draws the augmentation, from (seed, epoch); without it the order is the data's own.
        shard: of each batch, the images to give; they are augmented as in the whole batch.
    """
    device = data.stored.device
    source = generator(seed or 0, "epoch", epoch)
    order = torch.arange(len(data)) if seed is None else torch.randperm(len(data), generator=source)
    for index in order.split(size):
        if augment:
            corner = torch.randint(0, 9, (2, len(index), 1), generator=source)
            flipped = torch.rand(len(index), 1, generator=source) < 0.5
            images = _cropped(data.at(index[shard].to(device)), corner[:, shard, 0].to(device))
            images = torch.where(flipped[shard, :, None, None].to(device), images.flip(2), images)
        else:
            images = data.at(index[shard].to(device))
        labels = data.labels[index[shard].to(device)]
        yield (images if data.are_tokens else _normalized(images, splits)), labels


def at_once(images: Images, most: int = 1000) -> int:
    """How many images to compute at once where no step hangs on it: ``most`` of up to 64x64, fewer of larger ones.

    Ours, because memory goes with the pixels: ResNet-50 takes 21 GiB to evaluate 1,000 images of 224x224.

    >>> at_once(Images(torch.empty(0, 224, 224, 3), torch.empty(0)))
    81
    """
    pixels = images.shape[0] * (1 if images.are_tokens else images.shape[1])
    return max(1, min(most, most * 64**2 // max(1, pixels)))


def _cropped(images: Tensor, corner: Tensor) -> Tensor:
    """A crop of each image after padding by 4 zeros, at its corner (2, N), rows and columns.

    Taken from a view (N, 9, 9, H, W, C) of all crops, because whole crops are copied faster than single pixels.
    """
    height, width = images.shape[1:3]
    padded = torch.nn.functional.pad(images, (0, 0, 4, 4, 4, 4))
    crops = padded.unfold(1, height, 1).unfold(2, width, 1).permute(0, 1, 2, 4, 5, 3)
    return crops[torch.arange(len(images), device=images.device), corner[0], corner[1]]


def _normalized(images: Tensor, splits: Splits) -> Tensor:
    """Float images (N, C, H, W) in channels-last order; row by row, because three values at a time are slow."""
    mean, std = ((255 * statistic).to(images.device).repeat(images.shape[2]) for statistic in (splits.mean, splits.std))
    return images.flatten(2).float().sub_(mean).div_(std).view(images.shape).permute(0, 3, 1, 2)
