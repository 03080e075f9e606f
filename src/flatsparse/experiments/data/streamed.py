"""Splits of images in files: decoded, cropped and flipped in worker processes, normalized on the device."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatsparse.experiments.data.arrays import normalized
from flatsparse.experiments.data.image_files import ImageFiles, ImageFileSet
from flatsparse.experiments.data.loading import read_batches
from flatsparse.experiments.data.samples import at_once
from flatsparse.experiments.data.split import Batch, EvenBatches, Splits, epoch_order
from flatsparse.experiments.data.splits import divided
from flatsparse.experiments.data.views import View, evaluation_view, training_view

MEAN, STD = (
    (0.485, 0.456, 0.406),
    (0.229, 0.224, 0.225),
)  # of ImageNet's training images, as its nets are published with
MEASURED = 50_000  # as many as CIFAR has to train on
FEW = 256  # images that starting workers does not pay for


@dataclass(frozen=True)
class StreamedSplit(EvenBatches):
    """Images in files as a split. A batch is normalized images (N, 3, size, size) in channels-last order, and their labels.

    Attributes:
        files: where they are, and their labels.
        name: for messages.
        view: the squares that they become.
        workers: processes that read ahead; batches do not depend on it.
        mean, std: of each channel, on a scale of 0 to 1.
        device: of the batches.
    """

    files: ImageFiles
    name: str
    view: View
    workers: int = 0
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __len__(self) -> int:
        return len(self.files)

    @property
    def labels(self) -> Tensor:
        """The labels, int64 (N), for which no image is read."""
        return self.files.labels

    @property
    def shape(self) -> torch.Size:
        """The shape of one view: height, width and channels."""
        return torch.Size((self.view.size, self.view.size, 3))

    @property
    def blank(self) -> Tensor:
        """One view of zeros, in the form that batches have."""
        return torch.zeros(1, 3, self.view.size, self.view.size)

    def first(self, count: int) -> StreamedSplit:
        """Return the first images, or all where there are not as many."""
        return self.subset(torch.arange(min(count, len(self))))

    def subset(self, index: Tensor) -> StreamedSplit:
        """Return the images at some indices."""
        return dataclasses.replace(self, files=self.files.subset(index))

    def measured(self) -> StreamedSplit:
        """Return the first 50,000 images, or all where there are not as many."""
        return self if len(self) <= MEASURED else self.first(MEASURED)

    def at_once(self, most: int) -> int:
        """Return how many images to compute at once where no step depends on it."""
        return min(at_once(self, most), len(self))

    def to(self, device: torch.device) -> StreamedSplit:
        """Return the split with its batches on a device."""
        return dataclasses.replace(self, device=device)

    def batches(
        self,
        size: int,
        *,
        seed: int | None = None,
        epoch: int = 0,
        shard: slice = slice(None),
        augment: bool = False,
    ) -> Iterator[Batch]:
        """Yield the batches of an epoch; with ``augment``, images are cropped at random, and half of them flipped.

        An image's crop follows (seed, epoch, its row in the files) alone. See ``Split``.

        Raises: InputError with the name of a file that is damaged.
        """
        order = epoch_order(len(self), size, seed, epoch)
        read = self._read(order, shard, (seed or 0, epoch) if augment else None)
        for pixels, index in zip(read, order, strict=True):
            labels = self.files.labels[index[shard]].to(self.device, non_blocking=True)
            yield Batch((self.normalized(pixels), labels), len(labels), len(index))

    def pixels(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images as evaluations see them, in their own order, ``size`` at once, uint8 (N, H, W, 3), and their labels.

        Raises: InputError with the name of a file that is damaged.
        """
        order = epoch_order(len(self), size, None, 0)
        for pixels, index in zip(self._read(order, slice(None), None), order, strict=True):
            yield pixels, self.files.labels[index].to(self.device)

    def normalized(self, pixels: Tensor) -> Tensor:
        """Return images (N, H, W, 3) as batches have them."""
        return normalized(pixels, torch.tensor(self.mean), torch.tensor(self.std))

    def _read(self, order: Sequence[Tensor], shard: slice, path: tuple[int, int] | None) -> Iterator[Tensor]:
        """Yield a shard of each batch as views: of training where there is a path, a seed and an epoch."""
        views = _Views(self.files.stored, self.view, path)
        workers = self.workers if len(self) > FEW else 0
        stacked = functools.partial(_stacked, self.view.size)
        return read_batches(views, _Rows(self.files, order, shard), stacked, workers, self.device, self.name)


def streamed_splits(
    data: ImageFileSet,
    view: View,
    workers: int,
    *,
    train_size: int | None,
    validation_size: int | None,
    label_noise: float,
    seed: int,
) -> Splits:
    """Return a run's splits of a data set whose images stay in their files; see ``divided``.

    Args:
        view: the squares that images become.
        workers: processes that read ahead.
    """
    train, validation, test = divided(
        data, train_size=train_size, validation_size=validation_size, label_noise=label_noise, seed=seed
    )
    names = (f"{data.name} ({part})" for part in ("train", "validation", "test"))
    return Splits(
        *(
            StreamedSplit(files, name, view, workers)
            for files, name in zip((train, validation, test), names, strict=True)
        )
    )


@dataclass(frozen=True)
class _Views:
    """The views of stored images, by their rows, uint8 (size, size, 3); training views where there is a seed and an epoch."""

    stored: Any
    view: View
    path: tuple[int, int] | None

    def __getitem__(self, row: int) -> np.ndarray:
        image = self.stored.image(row)
        if self.path is None:
            return evaluation_view(image, self.view)
        return training_view(image, self.view, *self.path, row)


class _Rows(Sequence[list[int]]):
    """The stored rows of each batch, made when they are asked for: as lists, those of a million images take 40 MB."""

    def __init__(self, files: ImageFiles, order: Sequence[Tensor], shard: slice) -> None:
        self.files, self.order, self.shard = files, order, shard

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, number: Any) -> Any:
        return self.files.stored_rows(self.order[number][self.shard]).tolist()


def _stacked(size: int, views: list[np.ndarray]) -> Tensor:
    """Return views as one tensor, uint8 (N, size, size, 3)."""
    return torch.from_numpy(np.stack(views)) if views else torch.empty(0, size, size, 3, dtype=torch.uint8)
