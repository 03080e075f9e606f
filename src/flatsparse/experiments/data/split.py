"""The splits of a task's data as a run reads them: training, validation and test, each of which makes its own batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from flatsparse.common.seeds import generator


class Batch(NamedTuple):
    """A batch as a loss takes it, on the run's device.

    Attributes:
        samples: how many of them this process has.
        whole: how many all processes of the run have together.
    """

    content: Any
    samples: int
    whole: int


class Split(Protocol):
    """A split of a task's data, which makes its own batches."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def steps(self, size: int) -> int:
        """Return the number of batches in an epoch."""

    def batches(
        self, size: int, *, seed: int | None = None, epoch: int = 0, shard: slice = ..., augment: bool = ...
    ) -> Iterator[Batch]:
        """Yield the batches of an epoch.

        Args:
            size: samples in a batch; the last may be smaller. Of text, tokens.
            seed: all that is random follows (seed, epoch, sample), and no number of workers or processes; without it the
                order is the data's own.
            shard: of each batch, the samples to give.
            augment: draw training views of the samples, of a split that has such.
        """

    def smallest(self, size: int) -> int:
        """Return the number of samples in the smallest batch."""

    def first(self, count: int) -> Split:
        """Return the first samples, or all where there are not as many."""

    def measured(self) -> Split:
        """Return the samples that the end of a run is measured on: all, or the first, where reading all takes long."""

    def at_once(self, most: int) -> int:
        """Return how many samples to compute at once where no step depends on it, ``most`` for small ones."""

    def to(self, device: torch.device) -> Split:
        """Return the split with its batches on a device."""


@dataclass(frozen=True)
class Batches:
    """The batches of a split in the data's own order, which can be read any number of times."""

    split: Split
    size: int

    def __iter__(self) -> Iterator[Batch]:
        return self.split.batches(self.size)


class EvenBatches(ABC):
    """A base of splits whose batches all have as many samples, but for the last, which has what is left."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    def steps(self, size: int) -> int:
        """Return the number of batches in an epoch."""
        return -(-len(self) // size)

    def smallest(self, size: int) -> int:
        """Return the number of samples in the smallest batch: the last."""
        return min((len(self) - 1) % size + 1, size)


@dataclass(frozen=True)
class Splits:
    """The training, validation and test samples of a run."""

    train: Split
    validation: Split
    test: Split

    def to(self, device: torch.device) -> Splits:
        """Return the splits with their batches on a device."""
        return Splits(*(split.to(device) for split in (self.train, self.validation, self.test)))


def epoch_order(count: int, size: int, seed: int | None, epoch: int) -> tuple[Tensor, ...]:
    """Return the indices of the samples of each batch of an epoch."""
    order = torch.arange(count)
    if seed is not None:
        order = torch.randperm(count, generator=generator(seed, "epoch", epoch))
    return order.split(size)


def chosen_samples(
    pool: int, *, held_out: int, size: int, seed: int, name: str, apart: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the indices of a run's training and validation samples.

    The validation samples are the same for all seeds that hold out as many, so that none of these trains on what a choice was
    made on; which of the rest are trained on follows the seed.

    Args:
        pool: the number of samples that training ones are taken from.
        held_out, size: the numbers of validation and training samples.
        name: the data set's.
        apart: the number of samples of a validation set of its own; without one they are taken from the pool.
    """
    order = torch.randperm(pool if apart is None else apart, generator=generator("validation", name))
    free = torch.arange(pool) if apart is not None else order[held_out:]
    return free[torch.randperm(len(free), generator=generator(seed, "subset"))[:size]], order[:held_out]
