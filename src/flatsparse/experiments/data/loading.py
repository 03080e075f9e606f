"""Splits of any data set: map-style ones and iterables with a length, read by torch's ``DataLoader``."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate
from torch.utils.data import Dataset as TorchDataset

from flatsparse.common.errors import InputError, described
from flatsparse.common.seeds import derive
from flatsparse.experiments.data.sending import START, Sent, started
from flatsparse.experiments.data.split import Batch, EvenBatches, epoch_order

Collate = Callable[[list[Any]], Any]
CPU = torch.device("cpu")
Key = tuple[int, int, int]  # seed, epoch and index of a sample
UNKNOWN = 256  # samples to compute at once
MEASURED = 10_000  # training samples that the end of a run is measured on


@dataclass(frozen=True)
class MapSplit(EvenBatches):
    """Samples of a map-style data set as a split.

    Attributes:
        dataset: has ``len`` and takes an index.
        name: for messages.
        rows: the indices of the split's samples in the data set, in their order; all by default.
        collate: makes a batch of a list of samples; by default torch's.
        workers: processes that read ahead; batches do not depend on it.
        device: of the batches.
    """

    dataset: Any
    name: str
    rows: Tensor | None = None
    collate: Collate | None = None
    workers: int = 0
    device: torch.device = CPU

    def __len__(self) -> int:
        return len(self.dataset) if self.rows is None else len(self.rows)

    def first(self, count: int) -> MapSplit:
        """Return the first samples."""
        rows = torch.arange(len(self)) if self.rows is None else self.rows
        return dataclasses.replace(self, rows=rows[:count], workers=self.workers if count > 1000 else 0)

    def subset(self, index: Tensor) -> MapSplit:
        """Return the samples at some indices."""
        return dataclasses.replace(self, rows=index if self.rows is None else self.rows[index])

    def measured(self) -> MapSplit:
        """Return the first samples."""
        return self.first(MEASURED) if len(self) > MEASURED else self

    def at_once(self, most: int) -> int:
        """Return how many samples to compute at once: few, as nothing is known of their size."""
        return min(most, UNKNOWN, len(self))

    def to(self, device: torch.device) -> MapSplit:
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
        """Yield the batches of an epoch. A sample's own random numbers follow (seed, epoch, index). See ``Split``.

        Those that ``collate`` draws follow the first sample of the batch.
        """
        order = epoch_order(len(self), size, seed, epoch)
        counts = [(len(index[shard]), len(index)) for index in order]
        keys = _Keys(order, shard, self.rows, (seed or 0, epoch))
        collate = functools.partial(_seeded_collate, self.collate or default_collate)
        read = read_batches(_Seeded(self.dataset), keys, collate, self.workers, self.device, self.name)
        for content, (samples, whole) in zip(read, counts, strict=True):
            yield Batch(content, samples, whole)


class _Keys(Sequence[list[Key]]):
    """The keys of each batch, made when they are asked for: as lists, those of a million samples take 100 MB."""

    def __init__(self, order: Sequence[Tensor], shard: slice, rows: Tensor | None, path: tuple[int, int]) -> None:
        self.order, self.shard, self.rows, self.path = order, shard, rows, path

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, number: Any) -> Any:
        index = self.order[number][self.shard]
        return [(*self.path, row) for row in (index if self.rows is None else self.rows[index]).tolist()]


@dataclass(frozen=True)
class StreamSplit(EvenBatches):
    """Samples of an iterable with a length as a split, in the iterable's own order.

    Its random numbers follow (seed, epoch), and ``set_epoch`` is called on it where it has that. It is read by one worker
    at most, and by every process of a run, because only it could divide itself.

    Attributes:
        dataset: can be iterated over, and has ``len``.
        count: samples to read, at most; all by default.
    """

    dataset: Any
    name: str
    count: int | None = None
    collate: Collate | None = None
    workers: int = 0
    device: torch.device = CPU

    def __len__(self) -> int:
        return len(self.dataset) if self.count is None else min(self.count, len(self.dataset))

    def first(self, count: int) -> StreamSplit:
        """Return the first samples."""
        return dataclasses.replace(self, count=min(count, len(self)), workers=0)

    def measured(self) -> StreamSplit:
        """Return the first samples."""
        return self.first(MEASURED) if len(self) > MEASURED else self

    def at_once(self, most: int) -> int:
        """Return how many samples to compute at once: few, as nothing is known of their size."""
        return min(most, UNKNOWN, len(self))

    def to(self, device: torch.device) -> StreamSplit:
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
        """Yield the batches of an epoch. Raises InputError when there are less samples than its length says."""
        if callable(set_epoch := getattr(self.dataset, "set_epoch", None)):
            set_epoch(epoch)
        source = _SeededStream(self.dataset, (seed or 0, epoch), size, len(self))
        loader = _loader(source, None, functools.partial(_shared, self.collate or default_collate, shard), self.workers)
        left = len(self)
        for content, samples, whole in _checked(loader, self.name):
            yield Batch(moved(content, self.device), samples, whole)
            left -= whole
        if left:
            raise InputError(
                f"'{self.name}' ended after {len(self) - left} of the {len(self)} samples that its length says: correct one"
            )


def read_batches(
    dataset: Any,
    keys: Sequence[Sequence[Any]],
    collate: Collate,
    workers: int,
    device: torch.device,
    name: str,
) -> Iterator[Any]:
    """Yield a batch for each list of keys, moved to a device.

    Args:
        dataset: takes a key and returns a sample.
        keys: of the samples of each batch.
        collate: makes a batch of a list of samples.
        workers: processes that read ahead.
        name: of the data, for messages.

    Raises: InputError, with the reason, when a sample cannot be read or collated, and when a worker dies.
    """
    loader = _loader(_Caught(dataset), keys, functools.partial(_collated, collate), workers, device.type == "cuda")
    for content in _checked(loader, name):
        yield moved(content, device)


def moved(content: Any, device: torch.device) -> Any:
    """Return a batch with its tensors on a device: a tensor, what has ``to``, or a tuple, list, mapping or dataclass of such."""
    if isinstance(content, Tensor):
        return content.to(device, non_blocking=True)
    if not isinstance(content, type) and callable(
        getattr(content, "to", None)
    ):  # of transformers, PyG; packed sequences
        return content.to(device)
    if isinstance(content, tuple) and hasattr(content, "_fields"):  # a named one
        return type(content)(*(moved(part, device) for part in content))
    if isinstance(content, (tuple, list)):
        return type(content)(moved(part, device) for part in content)
    if isinstance(content, MutableMapping):
        there = copy.copy(content)
        there.update({name: moved(part, device) for name, part in content.items()})
        return there
    if dataclasses.is_dataclass(content) and not isinstance(content, type):
        same: Any = copy.copy(content)
        for field in dataclasses.fields(content):
            object.__setattr__(same, field.name, moved(getattr(content, field.name), device))  # frozen ones too
        return same
    return content


@contextlib.contextmanager
def seeded(*path: int | str) -> Iterator[None]:
    """A context in which torch's, numpy's and Python's global generators are seeded; afterwards they are what they were."""
    with generators_kept():
        seed_all(*path)
        yield


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """A context after which torch's, numpy's and Python's global generators are what they were."""
    state, pythons, numpys = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)
        random.setstate(pythons)
        np.random.set_state(numpys)


def seed_all(*path: int | str) -> None:
    """Seed torch's, numpy's and Python's global generators of this process."""
    seed = derive(*path)
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # what a user's data set draws from


# -- what runs in a worker --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Failure:
    """The error of a worker, as a line of text."""

    reason: str


@dataclass(frozen=True)
class _Seeded:
    """Pairs of a key and a sample of a data set, whose random numbers follow the key."""

    dataset: Any

    def __getitem__(self, key: Key) -> tuple[Key, Any]:
        with seeded("sample", *key):
            return key, self.dataset[key[2]]


def _seeded_collate(collate: Collate, pairs: list[tuple[Key, Any]]) -> Any:
    with seeded("batch", *(pairs[0][0] if pairs else ())):
        return collate([sample for _, sample in pairs])


class _Caught(Sent, TorchDataset):
    """A data set that returns an error instead of raising it: a worker's own comes as a text of many lines."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.dataset[key]
        except Exception as problem:
            return _failure(problem)


class _SeededStream(Sent, IterableDataset):
    """Batches of an iterable, each with its key, whose random numbers follow a seed, apart from those of training."""

    def __init__(self, source: Iterable[Any], path: tuple[int, int], size: int, count: int) -> None:
        self.source, self.path, self.size, self.count = source, path, size, count

    def __iter__(self) -> Iterator[Any]:
        states: Any = None
        source: Iterator[Any] | None = None
        left = self.count
        for number in itertools.count():
            if left <= 0:
                return
            with seeded("stream", *self.path):
                if states is not None:
                    _set_states(states)
                try:
                    source = iter(self.source) if source is None else source
                    batch: Any = list(itertools.islice(source, min(self.size, left)))
                except Exception as problem:
                    batch = _failure(problem)
                states = torch.get_rng_state(), random.getstate(), np.random.get_state()
            if isinstance(batch, _Failure):
                yield batch
            if isinstance(batch, _Failure) or not batch:
                return
            left -= len(batch)
            yield (*self.path, number), batch


def _set_states(states: Any) -> None:
    torch.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])


def _failure(problem: Exception) -> _Failure:
    if isinstance(problem, InputError):
        return _Failure(str(problem))
    return _Failure(described(problem))


def _collated(collate: Collate, samples: list[Any]) -> Any:
    failed = next((sample for sample in samples if isinstance(sample, _Failure)), None)
    if failed is not None:
        return failed
    try:
        return collate(samples)
    except Exception as problem:
        return _failure(problem)


def _shared(collate: Collate, shard: slice, batch: Any) -> Any:
    """Return the content of this process's share of a batch, and the numbers of samples in it and in the whole."""
    if isinstance(batch, _Failure):
        return batch
    key, samples = batch
    own = samples[shard]
    with seeded("batch", *key):
        content = _collated(collate, own)
    return content if isinstance(content, _Failure) else (content, len(own), len(samples))


# -- torch's loader ---------------------------------------------------------------------------------------------------


def _loader(
    dataset: Any, keys: Sequence[Sequence[Any]] | None, collate: Collate, workers: int, pin: bool = False
) -> Iterable[Any]:
    """Return torch's loader; of a stream where there are no keys, which gives whole batches and has one worker at most."""
    options: dict[str, Any] = {"batch_size": None} if keys is None else {"batch_sampler": keys}
    workers = min(workers, 1) if keys is None else min(workers, len(keys))
    if workers:
        options["multiprocessing_context"] = START
    # Tensors that a data set holds on the GPU cannot be pinned, and do not come from workers.
    options |= {"num_workers": workers, "pin_memory": pin and workers > 0}
    # The loader draws a seed for its workers, which must not be taken from what the model draws from.
    return DataLoader(dataset, collate_fn=collate, generator=torch.Generator(), **options)


def _checked(loader: Iterable[Any], name: str) -> Iterator[Any]:
    """Yield what a loader gives. Raises InputError for a worker's error, or its death."""
    with deaths_told(name):
        for content in started(loader, name):
            if isinstance(content, _Failure):
                raise InputError(f"'{name}' cannot be read: {content.reason}")
            yield content


@contextlib.contextmanager
def deaths_told(name: str) -> Iterator[None]:
    """A context in which the death of a worker that reads data is an InputError: torch raises it in whatever is done then."""
    try:
        yield
    except RuntimeError as problem:
        if "DataLoader worker" not in str(problem):
            raise
        raise InputError(
            f"a worker process that reads '{name}' died, perhaps for lack of memory: try fewer --workers"
        ) from None
