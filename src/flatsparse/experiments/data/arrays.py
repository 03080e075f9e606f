"""Splits of images in memory: batches that are shuffled, cropped, flipped and normalized without per-image code."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flatsparse.common.seeds import generator
from flatsparse.experiments.data.samples import Samples, at_once
from flatsparse.experiments.data.split import Batch, EvenBatches


@dataclass(frozen=True)
class ArraySplit(EvenBatches):
    """Images in memory as a split. A batch is normalized images (N, C, H, W) in channels-last order, and their labels.

    Attributes:
        samples: on the device of the batches.
        mean, std: of each channel of the training images, on a scale of 0 to 1.
    """

    samples: Samples
    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def labels(self) -> Tensor:
        """The labels, int64 (N)."""
        return self.samples.labels

    def first(self, count: int) -> ArraySplit:
        """Return a copy of the first images."""
        index = torch.arange(min(count, len(self.samples)))
        return dataclasses.replace(self, samples=self.samples.take(index))

    def subset(self, index: Tensor) -> ArraySplit:
        """Return the images at some indices, in the memory of these."""
        return dataclasses.replace(self, samples=self.samples.subset(index.to(self.labels.device)))

    def measured(self) -> ArraySplit:
        """Return all images."""
        return self

    def at_once(self, most: int) -> int:
        """Return how many images to compute at once where no step depends on it."""
        return min(at_once(self.samples, most), len(self))

    def to(self, device: torch.device) -> ArraySplit:
        """Return the split with its images on a device."""
        return dataclasses.replace(self, samples=self.samples.to(device))

    def batches(
        self,
        size: int,
        *,
        seed: int | None = None,
        epoch: int = 0,
        shard: slice = slice(None),
        augment: bool = False,
    ) -> Iterator[Batch]:
        """Yield the batches of an epoch; with ``augment``, images are cropped at random after padding by 4, half are flipped.

        A shard's images are augmented as in the whole batch. See ``Split``.
        """
        device = self.samples.stored.device
        source = generator(seed or 0, "epoch", epoch)
        order = torch.arange(len(self)) if seed is None else torch.randperm(len(self), generator=source)
        for index in order.split(size):
            chosen = index[shard].to(device)
            if augment:
                corner = torch.randint(0, 9, (2, len(index), 1), generator=source)
                flipped = torch.rand(len(index), 1, generator=source) < 0.5
                images = _cropped(self.samples.at(chosen), corner[:, shard, 0].to(device))
                images = torch.where(flipped[shard, :, None, None].to(device), images.flip(2), images)
            else:
                images = self.samples.at(chosen)
            yield Batch((normalized(images, self.mean, self.std), self.samples.labels[chosen]), len(chosen), len(index))

    def pixels(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images in their own order, ``size`` at once, uint8 (N, H, W, C), and their labels."""
        for index in torch.arange(len(self), device=self.labels.device).split(size):
            yield self.samples.at(index), self.labels[index]

    def normalized(self, pixels: Tensor) -> Tensor:
        """Return images (N, H, W, C) as batches have them."""
        return normalized(pixels, self.mean, self.std)


def normalized(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return float images (N, C, H, W) in channels-last order; row by row, because three values at a time are slow.

    Args:
        images: uint8 (N, H, W, C).
        mean, std: of each channel, on a scale of 0 to 1.
    """
    mean, std = ((255 * statistic).to(images.device).repeat(images.shape[2]) for statistic in (mean, std))
    return images.flatten(2).float().sub_(mean).div_(std).view(images.shape).permute(0, 3, 1, 2)


def _cropped(images: Tensor, corner: Tensor) -> Tensor:
    """Return a crop of each image after padding by 4 zeros, at its corner (2, N), rows and columns.

    Taken from a view (N, 9, 9, H, W, C) of all crops, because whole crops are copied faster than single pixels.
    """
    height, width = images.shape[1:3]
    padded = torch.nn.functional.pad(images, (0, 0, 4, 4, 4, 4))
    crops = padded.unfold(1, height, 1).unfold(2, width, 1).permute(0, 1, 2, 4, 5, 3)
    return crops[torch.arange(len(images), device=images.device), corner[0], corner[1]]
