"""Sequences: the next token's cross-entropy, shared by translation and language modelling."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatsparse.common.errors import InputError, first_line
from flatsparse.experiments.data.split import Batch, Splits, chosen_samples
from flatsparse.experiments.data.token_batches import AT_ONCE, Sequences, TokenSplit
from flatsparse.experiments.data.vocabulary import PADDING, Vocabulary
from flatsparse.experiments.tasks.run_task import RunTask
from flatsparse.experiments.tasks.settings import Dataset

COUNTED = 64  # sequences that operations are counted of


@dataclass(frozen=True, kw_only=True)
class NextToken(RunTask):
    """A task of predicting the next token of sequences. Losses are means over tokens.

    Attributes:
        vocabulary: of all sequences.
        network: the name of the network, for messages.
        label_smoothing: share of each training token that is spread over the vocabulary; evaluations are without it.
    """

    vocabulary: Vocabulary
    network: str
    label_smoothing: float = 0.0

    @abstractmethod
    def logits(self, model: nn.Module, content: Sequences) -> Tensor:
        """Return the logits of all target tokens but the first, (N, target length - 1, vocabulary)."""

    def loss(self, model: nn.Module, content: Sequences) -> Tensor:
        """Return the mean cross-entropy over the batch's tokens; of a shard, its share of that of the whole batch."""
        total = cross_entropy(self.logits(model, content), content, self.label_smoothing)
        return total / (len(content.target) * content.per_sample)

    def weight(self, batch: Batch) -> float:
        """Return the number of tokens that all processes predict."""
        return float(batch.whole * batch.content.per_sample)

    def summed(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the cross-entropy over a batch, in units of a sample's tokens in its split.

        Its mean over the samples of the split is then the mean over tokens.
        """
        content: Sequences = batch.content
        return cross_entropy(self.logits(model, content).float(), content) / content.in_split

    @torch.no_grad()
    def check(self, model: nn.Module, smallest: int) -> None:
        """Raise InputError for a network that does not give logits of these sequences."""
        content = next(self.splits.train.first(2).to(torch.device("cpu")).batches(AT_ONCE)).content
        with torch.random.fork_rng(devices=[]):
            try:
                outputs = self.logits(copy.deepcopy(model).eval(), content)
            except (TypeError, ValueError, RuntimeError, IndexError) as problem:
                reason = first_line(problem) or type(problem).__name__
                raise InputError(f"--model {self.network} cannot read '{self.name}' ({reason}): give another") from None
        wanted = (*content.target[:, 1:].shape, len(self.vocabulary))
        if tuple(outputs.shape) != wanted:
            raise InputError(f"--model {self.network} gives {tuple(outputs.shape)}, wanted {wanted}: give another")

    def sample_forward(self, model: nn.Module) -> tuple[Callable[[], Any], int]:
        """Return a forward pass of some sequences in batches of like length, and how many."""
        some = self.splits.train.first(COUNTED)
        batches = list(some.batches(AT_ONCE // 4))
        return lambda: [self.logits(model, batch.content) for batch in batches], len(some)

    @property
    def files(self) -> dict[str, bytes]:
        """The vocabulary, so that the weights are of use without the training text."""
        return {"vocabulary.model": self.vocabulary.file}


def cross_entropy(logits: Tensor, content: Sequences, label_smoothing: float = 0.0) -> Tensor:
    """Return the sum of the cross-entropy over all target tokens but the first and padding."""
    targets = content.target[:, 1:].flatten()
    return F.cross_entropy(
        logits.flatten(0, 1), targets, ignore_index=PADDING, label_smoothing=label_smoothing, reduction="sum"
    )


@dataclass
class Counts:
    """Sums over the batches of an evaluation."""

    loss: float = 0.0
    right: int = 0
    tokens: int = 0

    def add(self, logits: Tensor, content: Sequences) -> None:
        """Add a batch."""
        targets = content.target[:, 1:]
        counted = targets != PADDING
        self.loss += float(cross_entropy(logits.float(), content))
        self.right += int(((logits.argmax(-1) == targets) & counted).sum())
        self.tokens += int(counted.sum())

    @property
    def mean_loss(self) -> float:
        """The mean cross-entropy of a token."""
        return self.loss / self.tokens

    @property
    def accuracy(self) -> float:
        """The share of tokens that are the most probable one, after the true ones before them, in percent."""
        return 100 * self.right / self.tokens


def chosen_splits(
    pool: TokenSplit, validation: TokenSplit, test: TokenSplit, chosen: Dataset, name: str, seed: int
) -> Splits:
    """Return the splits of a run, with a validation set of its own. Raises InputError when there are not enough sequences."""
    held_out = len(validation) if chosen.validation_size is None else chosen.validation_size
    size = len(pool) if chosen.train_size is None else chosen.train_size
    if held_out > len(validation) or size > len(pool):
        raise InputError(
            f"cannot take {size:,} training and {held_out:,} validation samples of '{name}', which has {len(pool):,} and"
            f" {len(validation):,}: give less of --train-size or --validation-size"
        )
    rows, held = chosen_samples(len(pool), held_out=held_out, size=size, seed=seed, name=name, apart=len(validation))
    return Splits(pool.subset(rows), validation.subset(held), test)
