"""The task of a run: splits, networks, loss and scores, whatever they are of."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from flatsparse.common.errors import InputError
from flatsparse.experiments.data.split import Batch, Splits

SomeTask = TypeVar("SomeTask", bound="RunTask")


@dataclass(frozen=True)
class Evaluation:
    """A network's mean loss and scores on a split.

    Attributes:
        scores: the first is the one compared.
        details: what else is known of the outputs.
    """

    loss: float
    scores: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The score that is compared."""
        return next(iter(self.scores.values()))


@dataclass(frozen=True, kw_only=True)
class RunTask(ABC):
    """The task of a run.

    Attributes:
        name: of the data or the task, as it was asked for.
        identity: name, source and fingerprint of the data, as a run's files have them.
        splits: on the device of the run.
        fresh: returns a new network, on the CPU.
        samples: what the samples are, such as "images of 10 classes".
        loss_name: the loss in words.
        better: the better direction of the first score.
        notes: remarks on the data for the user, a sentence each.
        augmented: training batches are of augmented samples.
        scored: a run's files have the scores by name; of classification they have its accuracy.
        elsewhere: what else to do than to put data back, for a message.
    """

    name: str
    identity: dict[str, str]
    splits: Splits
    fresh: Callable[[], nn.Module]
    samples: str = "samples"
    loss_name: str = "loss"
    better: Literal["higher", "lower"] = "higher"
    notes: tuple[str, ...] = ()
    augmented: bool = False
    scored: bool = True
    elsewhere: ClassVar[str] = ", or name its folder with --data-dir"

    @abstractmethod
    def loss(self, model: nn.Module, content: Any) -> Tensor:
        """Return the mean loss of a batch, which is trained on."""

    @abstractmethod
    def summed(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the sum over a batch of the loss that is measured."""

    @abstractmethod
    def evaluate(self, model: nn.Module, batches: Iterable[Batch], count: int, *, detailed: bool = False) -> Evaluation:
        """Return the mean loss and the scores of a network in evaluation mode.

        Args:
            batches: can be read more than once.
            count: the number of samples in all batches.
            detailed: give all details too.
        """

    @abstractmethod
    def check(self, model: nn.Module, smallest: int) -> None:
        """Raise InputError when a network cannot be trained on these data; it is left as it is.

        Args:
            model: on the CPU.
            smallest: samples in the smallest batch of a process.
        """

    def train_loss(self, model: nn.Module, content: Any) -> tuple[Tensor, Tensor | None]:
        """Return the loss of a batch, and the number of right predictions where there are such."""
        return self.loss(model, content), None

    def weight(self, batch: Batch) -> float:
        """Return the weight of a batch's mean loss in the mean over several batches."""
        return batch.whole

    def sample_forward(self, model: nn.Module) -> tuple[Callable[[], Any], int]:
        """Return a forward pass of a few samples, and how many, to count operations in."""
        batch = next(self.splits.train.first(2).batches(2))
        return lambda: self.loss(model, batch.content), batch.samples

    def inputs(self, model: nn.Module, content: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments that the loss of a batch calls the model with, the first time that it does."""
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        hook = model.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
        try:
            with torch.no_grad():
                self.loss(model, content)
        finally:
            hook.remove()
        if not calls:
            raise InputError(f"the loss of '{self.name}' does not call the model: let it, as model(…)")
        return calls[0]

    def scoring(self, batches: Iterator[Batch], *, several: bool) -> dict[str, Any]:
        """Return what a method that scores weights on data takes, as options of ``sparsify``.

        Args:
            several: for a method that takes more than one batch.
        """
        chosen = [next(batches).content]
        if several and (second := next(batches, None)) is not None:
            chosen.append(second.content)
        return {"batches": chosen, "model_loss": self.loss}

    def terms(self, model: nn.Module, batches: Iterable[Batch], count: int) -> Iterator[Tensor]:
        """Yield the terms of the mean loss over some batches that have ``count`` samples in all."""
        for batch in batches:
            yield self.summed(model, batch) / count

    @property
    def files(self) -> dict[str, bytes]:
        """Files that a run's folder gets at its end, by name: what the network is of no use without."""
        return {}

    def to(self: SomeTask, device: torch.device) -> SomeTask:
        """Return the task with its batches on a device."""
        return dataclasses.replace(self, splits=self.splits.to(device))

    def check_same(self, record: Mapping[str, Any], origin: str) -> None:
        """Raise InputError when a record is of other data; records of early versions do not say.

        Args:
            record: the JSON of a run or a comparison.
            origin: the record's location, for the message.
        """
        recorded = record.get("data_set")
        if recorded is not None and recorded["fingerprint"] != self.identity["fingerprint"]:
            raise InputError(
                f"{origin} is of other data: '{self.identity['name']}' from {self.identity['source']} is not what it was made"
                f" on, from {recorded['source']}: put that back{self.elsewhere}"
            )

    @property
    def unit(self) -> str:
        """The word for samples: images, or samples."""
        return self.samples.partition(" ")[0]

    @property
    def summary(self) -> str:
        """The numbers of samples, in a line."""
        train, validation, test = (len(s) for s in (self.splits.train, self.splits.validation, self.splits.test))
        return f"{self.name}: {train:,} training, {validation:,} validation and {test:,} test {self.samples}"
