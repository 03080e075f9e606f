"""Tasks: what a run works on, as a user defines it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn


@dataclass(frozen=True)
class Task:
    """A model, its data, its loss and its scores: all that a run needs to know of a problem.

    Ours, because a problem is more than images with a class each. A function without arguments that returns one, in a
    Python file, is what ``flatsparse train --task file.py:function`` takes.

    Attributes:
        model: returns a new model, on the CPU; torch's, numpy's and Python's generators are seeded by the run.
        train: samples to train on: a map-style data set, or an iterable with a length, which is read in its own order.
            What it or ``collate`` draws at random, with torch, numpy or ``random``, follows the run's seed, the epoch and
            the sample.
        test: samples that are evaluated once, at the end of a run.
        loss: of the model and a batch, the mean over the batch's samples, a scalar.
        score: of the model and the batches of a whole data set, numbers by name; the first is the one compared. The
            model is in evaluation mode, without gradients. The batches can be read more than once; their size depends on
            the memory that is free, and the last may be smaller, so that a mean has to be taken over samples.
        better: whether a higher or a lower first score is better.
        validation: samples for choices, such as that of ρ. By default they are held out of ``train``.
        collate: makes a batch of a list of samples; by default torch's ``default_collate``.
        workers: processes that read samples ahead of training; results do not depend on it.

    >>> import torch
    >>> data = torch.utils.data.TensorDataset(torch.ones(8, 3), torch.zeros(8, 1))
    >>> def loss(model, batch):
    ...     return torch.nn.functional.mse_loss(model(batch[0]), batch[1])
    >>> def score(model, batches):
    ...     errors = torch.cat([(model(inputs) - wanted).abs() for inputs, wanted in batches])
    ...     return {"error": float(errors.mean())}
    >>> Task(lambda: nn.Linear(3, 1), data, data, loss, score, better="lower").better
    'lower'
    """

    model: Callable[[], nn.Module]
    train: Any
    test: Any
    loss: Callable[[nn.Module, Any], Tensor]
    score: Callable[[nn.Module, Iterable[Any]], Mapping[str, float]]
    better: Literal["higher", "lower"] = "higher"
    validation: Any = None
    collate: Callable[[list[Any]], Any] | None = None
    workers: int = 0
