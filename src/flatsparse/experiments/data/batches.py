"""Batches of samples: shuffled, cropped, flipped and normalized without per-image code."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from flatsparse.common.seeds import generator
from flatsparse.experiments.data.samples import Samples
from flatsparse.experiments.data.splits import Splits


def batches(
    data: Samples,
    splits: Splits,
    size: int,
    *,
    augment: bool = False,
    seed: int | None = None,
    epoch: int = 0,
    shard: slice = slice(None),
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield normalized batches (N, C, H, W) in channels-last order, or tokens (N, length) as they are, with their labels.

    Args:
        data: on the device of the batches.
        splits: whose mean and deviation normalize.
        size: samples in a batch; the last may be smaller.
        augment: crop at random after padding by 4 zeros, and flip half of the images.
        seed: shuffles, and draws the augmentation, from (seed, epoch); without it the order is the data's own.
        shard: of each batch, the samples to give; they are augmented as in the whole batch.
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


def _cropped(images: Tensor, corner: Tensor) -> Tensor:
    """Return a crop of each image after padding by 4 zeros, at its corner (2, N), rows and columns.

    Taken from a view (N, 9, 9, H, W, C) of all crops, because whole crops are copied faster than single pixels.
    """
    height, width = images.shape[1:3]
    padded = torch.nn.functional.pad(images, (0, 0, 4, 4, 4, 4))
    crops = padded.unfold(1, height, 1).unfold(2, width, 1).permute(0, 1, 2, 4, 5, 3)
    return crops[torch.arange(len(images), device=images.device), corner[0], corner[1]]


def _normalized(images: Tensor, splits: Splits) -> Tensor:
    """Return float images (N, C, H, W) in channels-last order; row by row, because three values at a time are slow."""
    mean, std = ((255 * statistic).to(images.device).repeat(images.shape[2]) for statistic in (splits.mean, splits.std))
    return images.flatten(2).float().sub_(mean).div_(std).view(images.shape).permute(0, 3, 1, 2)
