"""Data sets of images as tensors in memory, with their labels, and where they came from."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

S = TypeVar("S", bound="Labelled")


class Labelled(Protocol):
    """Images with their labels, in memory or in files."""

    @property
    def labels(self) -> Tensor:
        """The labels, int64 (N)."""

    def __len__(self) -> int:
        """Return the number of images."""

    def subset(self: S, index: Tensor) -> S:
        """Return the images at some indices, without a copy of them."""

    def relabelled(self: S, labels: Tensor) -> S:
        """Return the same images with other labels."""

    def identifying(self, classes: int) -> Iterator[Any]:
        """Yield the bytes that tell these images and labels from others."""


class Shaped(Protocol):
    """Images of one size."""

    @property
    def shape(self) -> torch.Size:
        """The shape of one image: height, width and channels."""


@dataclass(frozen=True)
class Samples:
    """Images, uint8 (N, H, W, C), and their labels, int64 (N).

    Attributes:
        stored: the images, or more than these.
        rows: the indices of these in ``stored``, in their order; all by default. So the splits of a set share its memory.
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
        """The shape of one image: height, width and channels."""
        return self.stored.shape[1:]

    @property
    def blank(self) -> Tensor:
        """One input of zeros, in the form that batches have."""
        return self.stored.new_zeros(1, self.shape[-1], *self.shape[:2], dtype=torch.float32)

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, index: Tensor) -> Tensor:
        """Return a copy of the images at some indices."""
        return self.stored[index if self.rows is None else self.rows[index]]

    def take(self, index: Tensor) -> Samples:
        """Return a copy of the samples at some indices."""
        return Samples(self.at(index), self.labels[index])

    def subset(self, index: Tensor) -> Samples:
        """Return the samples at some indices, in the memory of these."""
        return Samples(self.stored, self.labels[index], index if self.rows is None else self.rows[index])

    def relabelled(self, labels: Tensor) -> Samples:
        """Return the same images with other labels."""
        return Samples(self.stored, labels, self.rows)

    def identifying(self, classes: int) -> Iterator[Any]:
        """Yield shape, labels and pixels, of a whole set."""
        yield repr((tuple(self.stored.shape), classes)).encode()
        for tensor in (self.labels, self.stored):
            yield tensor.contiguous().numpy().data

    def to(self, device: torch.device) -> Samples:
        """Return the samples on a device; there ``stored`` has no more than these."""
        if self.stored.device == device:
            return self
        return Samples(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class LabelledSet(Generic[S]):
    """A data set of images as its source gives it.

    Attributes:
        pool: the samples that training and validation are taken from.
        test: evaluated once, at the end of a run.
        classes: the number of classes.
        augmented: training crops (after padding by 4) and flips.
        validation_size: number of samples held out unless a run asks for another.
        validation: the samples held out, of a source that has such a part; by default they are taken from the pool.
        source: where it came from.
        notes: remarks for its user, a sentence each.
        class_names: by the classes' numbers, where the source names them.
    """

    name: str
    pool: S
    test: S
    classes: int
    augmented: bool
    validation_size: int
    validation: S | None = None
    source: str = "embedded"
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] | None = None

    @functools.cached_property
    def fingerprint(self) -> str:
        """The SHA-256 over shapes, labels and pixels in their order: equal sets share it, whatever files they came in.

        Of images that stay in their files it is over labels, names and sizes of the files.
        """
        digest = hashlib.sha256()
        for samples in (self.pool, self.test, *([] if self.validation is None else [self.validation])):
            for content in samples.identifying(self.classes):
                digest.update(content)
        return digest.hexdigest()

    @property
    def identity(self) -> dict[str, str]:
        """Name, source and fingerprint, as a run's files have them."""
        return {"name": self.name, "source": self.source, "fingerprint": self.fingerprint}


class DataSet(LabelledSet[Samples]):
    """A data set of images in memory."""


def at_once(samples: Shaped, most: int = 1000) -> int:
    """Return how many samples to compute at once where no step depends on it: ``most`` of up to 64x64, fewer of larger ones.

    Ours, because memory goes with the pixels: ResNet-50 takes 21 GiB to evaluate 1,000 images of 224x224.

    >>> at_once(Samples(torch.empty(0, 224, 224, 3), torch.empty(0)))
    81
    """
    return max(1, min(most, most * 64**2 // max(1, samples.shape[0] * samples.shape[1])))
