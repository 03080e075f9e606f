"""A user's own task: a function in a Python file that returns a ``Task``, and what a run makes of it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from flatsparse.common.errors import InputError, described, shown
from flatsparse.common.plugins import errors_of, function_of
from flatsparse.experiments.data.loading import MapSplit, StreamSplit, moved, seeded
from flatsparse.experiments.data.parts import VALIDATION_SHARE
from flatsparse.experiments.data.split import Batch, Split, Splits, chosen_samples
from flatsparse.experiments.tasks.networks import checked_module
from flatsparse.experiments.tasks.run_task import Evaluation, RunTask
from flatsparse.experiments.tasks.settings import Dataset
from flatsparse.task import Task

LOOKED_AT = 4  # samples of a split that its fingerprint is made of: the first and the last
Part = MapSplit | StreamSplit


@dataclass(frozen=True, kw_only=True)
class UserTask(RunTask):
    """A task of the user's. Errors of its code become InputErrors of one line, with the file's name.

    Attributes:
        file: that defines it.
    """

    task: Task
    file: Path
    elsewhere: ClassVar[str] = ""

    def loss(self, model: nn.Module, content: Any) -> Tensor:
        """Return the task's loss of a batch."""
        with errors_of(self.file):
            return self.task.loss(model, content)

    def summed(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of a batch times its samples."""
        return self.loss(model, batch.content).float() * batch.samples

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: Iterable[Batch], count: int, *, detailed: bool = False) -> Evaluation:
        """Return mean loss and scores. The data are read once, unless the score reads them again, or only some of them."""
        read = _Read(batches, functools.partial(self.summed, model))
        with errors_of(self.file):
            given = self.task.score(model, read)
        if read.samples < count:
            for _ in read:
                pass
        return Evaluation(sum(read.losses) / count, checked_scores(given, self.name))

    def check(self, model: nn.Module, smallest: int) -> None:
        """Raise InputError when the loss of a batch is no scalar with a gradient, or scores are not numbers."""
        with seeded("check"):
            model = self._another(model)
        batch = next(self.splits.train.first(smallest).batches(smallest)).content
        with torch.random.fork_rng(devices=[]):
            loss = self.loss(model.train(), moved_as(batch, model))
            if not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad:
                got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
                got += " without a gradient" if isinstance(loss, Tensor) and not loss.ndim else ""
                raise InputError(f"the loss of '{self.name}' gives {got}: return the mean over the batch, a scalar")
            with torch.no_grad(), errors_of(self.file):
                read = [moved_as(b.content, model) for b in self.splits.test.first(smallest).batches(smallest)]
                checked_scores(self.task.score(model.eval(), read), self.name, finite=False)

    def _another(self, model: nn.Module) -> nn.Module:
        """Return a new model. Raises InputError when it shares parameters with one that was made before."""
        other = self.fresh()
        if not {id(p) for p in model.parameters()}.isdisjoint(id(p) for p in other.parameters()):
            raise InputError(f"the model of '{self.name}' is the same each time: make a new one in the function")
        return other


@dataclass
class _Read:
    """The contents of batches, as a score reads them, and their losses, each taken when it is first read."""

    batches: Iterable[Batch]
    loss: Callable[[Batch], Tensor]
    losses: list[float] = field(default_factory=list)
    samples: int = 0

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self.batches):
            if number == len(self.losses):
                self.losses.append(float(self.loss(batch)))
                self.samples += batch.samples
            yield batch.content


def moved_as(content: Any, model: nn.Module) -> Any:
    """Return a batch on the device of a model."""
    return moved(content, next((p.device for p in model.parameters()), torch.device("cpu")))


def user_task(chosen: Dataset, *, seed: int, label_noise: float, label_smoothing: float) -> UserTask:
    """Return the task of a user's file for a run; the file is run, with its random numbers seeded the same for every run.

    Raises: InputError for a file or function that fails, for what is no task, and for data that cannot be split as asked.
    """
    assert chosen.task is not None
    spec, file = chosen.task, Path(chosen.task.rpartition(":")[0])
    if label_noise or label_smoothing:
        flag = "--label-noise" if label_noise else "--label-smoothing"
        raise InputError(f"{flag} is for images with a class each, and '{spec}' has a loss of its own: leave it out")
    with seeded("task"):
        make = function_of(spec, "task")
        with errors_of(file):
            task = make()
    if not isinstance(task, Task):
        raise InputError(f"'{spec}' gave a {type(task).__name__}: return a flatsparse.Task")
    _check(task, spec)
    workers = task.workers if chosen.workers is None else chosen.workers
    with errors_of(file):
        parts = {
            part: _part(getattr(task, part), f"{spec} ({part})", task, workers)
            for part in ("train", "test", "validation")
            if part != "validation" or task.validation is not None
        }
    splits = _splits(parts, f"{file.name}:{spec.rpartition(':')[2]}", chosen, seed)  # the same by any path to the file
    return UserTask(
        name=spec,
        identity={"name": spec, "source": str(file.resolve()), "fingerprint": _fingerprint(parts)},
        splits=splits,
        fresh=lambda: _model(task, spec, file),
        better=task.better,
        task=task,
        file=file,
    )


def checked_scores(given: Any, name: str, *, finite: bool = True) -> dict[str, float]:
    """Return scores as plain numbers. Raises InputError when there are none, or one is no (finite) number."""
    if not isinstance(given, Mapping) or not given:
        raise InputError(f"the score of '{name}' gave {shown(given)}: return numbers by name, such as {{'error': 0.1}}")
    scores: dict[str, float] = {}
    for key, value in given.items():
        is_array = isinstance(value, (Tensor, np.ndarray, np.generic))
        number = value.item() if is_array and math.prod(value.shape) == 1 else value
        if not isinstance(number, numbers.Real):
            raise InputError(f"score '{key}' of '{name}' is {shown(value)}: return a number")
        if finite and not math.isfinite(number):
            raise InputError(f"score '{key}' of '{name}' is {float(number)}: return a finite number")
        scores[str(key)] = float(number)
    return scores


def _check(task: Task, spec: str) -> None:
    """Raise InputError for a task whose fields cannot be used."""
    for name in ("model", "loss", "score", "collate"):
        value = getattr(task, name)
        if not callable(value) and not (name == "collate" and value is None):
            raise InputError(f"{name} of '{spec}' is a {type(value).__name__}: give a function")
    if not isinstance(task.better, str) or task.better not in ("higher", "lower"):
        raise InputError(f"better of '{spec}' is {shown(task.better)}: give 'higher' or 'lower'")
    if not isinstance(task.workers, int) or task.workers < 0:
        raise InputError(f"workers of '{spec}' is {shown(task.workers)}: give a whole number of at least 0")


def _part(dataset: Any, name: str, task: Task, workers: int) -> Part:
    """Return a data set as a split. Raises InputError for one without a length, or without samples."""
    try:
        count = len(dataset)
    except TypeError:
        raise InputError(f"'{name}' is a {type(dataset).__name__} without a length: give it __len__") from None
    if isinstance(dataset, torch.utils.data.DataLoader):
        raise InputError(f"'{name}' is a DataLoader: give its data set, and its collate_fn as collate=")
    if count < 1:
        raise InputError(f"'{name}' holds no samples: add some")
    if callable(getattr(dataset, "__getitem__", None)) and not isinstance(dataset, torch.utils.data.IterableDataset):
        return MapSplit(dataset, name, collate=task.collate, workers=workers)
    if callable(getattr(dataset, "__iter__", None)):
        return StreamSplit(dataset, name, collate=task.collate, workers=workers)
    raise InputError(f"'{name}' is a {type(dataset).__name__}: give a data set with __getitem__ or __iter__")


def _splits(parts: Mapping[str, Part], name: str, chosen: Dataset, seed: int) -> Splits:
    """Return the splits of a run; without a validation set, samples are held out of a map-style training set."""
    pool, apart = parts["train"], parts.get("validation")
    if isinstance(pool, StreamSplit):
        whole = len(pool), 0 if apart is None else len(apart)
        asked = chosen.train_size, chosen.validation_size  # a run that was resolved asks for what there is
        if any(size not in (None, there) for size, there in zip(asked, whole, strict=True)):
            raise InputError(
                f"'{name}' reads its training samples as a stream, of which none can be taken out: give --task alone"
            )
        held: Split = apart if apart is not None else dataclasses.replace(parts["test"], **_nothing(parts["test"]))
        return Splits(pool, held, parts["test"])
    source = apart if apart is not None else pool
    usual = len(apart) if apart is not None else round(VALIDATION_SHARE * len(pool))
    held_out = usual if chosen.validation_size is None else chosen.validation_size
    rest = len(pool) - (0 if apart is not None else held_out)
    size = rest if chosen.train_size is None else chosen.train_size
    if held_out > len(source) or not 0 < size <= rest:
        raise InputError(
            f"cannot take {size} training and {held_out} validation samples from the {len(pool)} of '{name}': give less of"
            " --train-size or --validation-size"
        )
    if isinstance(source, StreamSplit):
        chosen_rows, _ = chosen_samples(len(pool), held_out=0, size=size, seed=seed, name=name, apart=0)
        return Splits(pool.subset(chosen_rows), source.first(held_out), parts["test"])
    rows, held_rows = chosen_samples(
        len(pool), held_out=held_out, size=size, seed=seed, name=name, apart=None if apart is None else len(apart)
    )
    return Splits(pool.subset(rows), source.subset(held_rows), parts["test"])


def _nothing(part: Part) -> dict[str, Any]:
    return {"count": 0} if isinstance(part, StreamSplit) else {"rows": torch.arange(0)}


def _model(task: Task, spec: str, file: Path) -> nn.Module:
    with errors_of(file):
        model = task.model()
    return checked_module(model, f"the model of '{spec}'")


def _fingerprint(parts: Mapping[str, Part]) -> str:
    """Return a hash over lengths and a few samples: the first and the last of each map-style part."""
    digest = hashlib.sha256()
    for part, split in parts.items():
        digest.update(f"{part} {len(split)}".encode())
        if isinstance(split, MapSplit):
            count = len(split)
            for index in sorted({*range(min(LOOKED_AT, count)), *range(max(0, count - LOOKED_AT), count)}):
                with seeded("fingerprint", index):
                    try:
                        sample = split.dataset[index]
                    except Exception as problem:
                        raise InputError(
                            f"sample {index} of '{split.name}' cannot be read: {described(problem)}"
                        ) from None
                _digest(sample, digest)
    return digest.hexdigest()


def _digest(sample: Any, digest: Any) -> None:
    """Add a sample to a hash: tensors, arrays, numbers and texts, and what contains them."""
    if isinstance(sample, Tensor):
        sample = sample.detach().cpu()
        sample = sample if sample.layout == torch.strided else sample.to_dense()
        digest.update(f"{sample.dtype}{tuple(sample.shape)}".encode())
        digest.update(sample.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if sample.numel() else b"")
    elif isinstance(sample, np.ndarray):
        digest.update(f"{sample.dtype}{sample.shape}".encode())
        if sample.dtype.hasobject:  # whose bytes are addresses
            _digest(sample.tolist(), digest)
        else:
            digest.update(np.ascontiguousarray(sample).tobytes())
    elif isinstance(sample, Mapping):
        for name, part in sample.items():
            digest.update(str(name).encode(errors="surrogatepass"))
            _digest(part, digest)
    elif isinstance(sample, (tuple, list)):
        for part in sample:
            _digest(part, digest)
    elif dataclasses.is_dataclass(sample):
        _digest([getattr(sample, field.name, None) for field in dataclasses.fields(sample)], digest)
    elif isinstance(sample, (bool, int, float, complex, str, bytes, type(None), np.generic)):
        digest.update(repr(sample).encode())
    else:  # its repr may hold an address
        digest.update(type(sample).__name__.encode())
