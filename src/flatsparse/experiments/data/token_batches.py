"""Splits of token sequences: batches of about as many tokens each, of sequences of like length."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from flatsparse.common.seeds import generator
from flatsparse.experiments.data.split import Batch
from flatsparse.experiments.data.vocabulary import PADDING

MEASURED = 1000  # training sequences that the end of a run is measured on, as decoding takes long
AT_ONCE = 4096  # tokens
CPU = torch.device("cpu")


class Sequences(NamedTuple):
    """A batch of token sequences.

    Attributes:
        source: token numbers (N, source length), padded at the end; None where there are only targets.
        target: token numbers (N, target length), padded at the end. Each but the first is to be predicted.
        per_sample: predicted tokens of a sequence, the mean over the batch of all processes.
        in_split: the same over the split.
        texts: the targets as they were written, of data that have such.
    """

    source: Tensor | None
    target: Tensor
    per_sample: float
    in_split: float
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class TokenLists:
    """Lists of token numbers, one after the other in one tensor.

    Attributes:
        flat: int32, all tokens.
        starts: of each list, and the end of the last (count + 1).
    """

    flat: Tensor
    starts: Tensor

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]]) -> TokenLists:
        """Return token lists of lists."""
        lengths = torch.tensor([0, *map(len, lists)])
        flat = torch.tensor([token for tokens in lists for token in tokens], dtype=torch.int32)
        return cls(flat, lengths.cumsum(0))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> Tensor:
        """The number of tokens of each list."""
        return self.starts.diff()

    def padded(self, rows: Tensor) -> Tensor:
        """Return the lists of some rows, int64 (rows, longest), padded at the end."""
        starts, lengths = self.starts[rows, None], self.lengths[rows, None]
        columns = torch.arange(int(lengths.max()) if len(rows) else 1)
        places = (starts + columns).clamp(max=len(self.flat) - 1)
        return self.flat[places].long().where(columns < lengths, PADDING)


@dataclass(frozen=True)
class TokenSplit:
    """Token sequences, or pairs of such, as a split. The size of a batch is in tokens, padding included.

    A batch is of sequences of like length, of which the longest times their number is at most the size; a sequence that is
    longer alone is a batch of its own. All epochs have the same number of batches, of the same numbers of sequences, because
    only the order among equally long sequences and that of the batches is drawn.

    Attributes:
        target: each begins with a token that is not predicted.
        source: of the same number, or None.
        rows: the sequences of the split, in the order of the data; its own order without a seed is by length.
        texts: the targets as they were written, or none.
        device: of the batches.
    """

    target: TokenLists
    source: TokenLists | None
    rows: Tensor
    texts: tuple[str, ...] = ()
    device: torch.device = CPU

    def __len__(self) -> int:
        return len(self.rows)

    def steps(self, size: int) -> int:
        """Return the number of batches in an epoch."""
        return len(self._counts(size))

    def smallest(self, size: int) -> int:
        """Return the number of sequences in the smallest batch."""
        return min(self._counts(size))

    def first(self, count: int) -> TokenSplit:
        """Return the first sequences."""
        return self.subset(torch.arange(min(count, len(self))))

    def subset(self, index: Tensor) -> TokenSplit:
        """Return the sequences at some indices."""
        return dataclasses.replace(self, rows=self.rows[index])

    def measured(self) -> TokenSplit:
        """Return the first sequences."""
        return self.first(MEASURED)

    def at_once(self, most: int) -> int:
        """Return how many tokens to compute at once."""
        return AT_ONCE

    def to(self, device: torch.device) -> TokenSplit:
        """Return the split with its batches on a device."""
        return dataclasses.replace(self, device=device)

    @property
    def tokens(self) -> int:
        """The number of tokens to predict."""
        return int(self.target.lengths[self.rows].sum()) - len(self)

    def batches(
        self,
        size: int,
        *,
        seed: int | None = None,
        epoch: int = 0,
        shard: slice = slice(None),
        augment: bool = False,
    ) -> Iterator[Batch]:
        """Yield the batches of an epoch. See ``Split``."""
        rows, lengths = self.rows, self._lengths()
        draw = generator(seed or 0, "epoch", epoch)
        if seed is not None:
            mixed = torch.randperm(len(rows), generator=draw)
            rows, lengths = rows[mixed], lengths[mixed]
        chosen = rows[lengths.argsort(stable=True)].split(self._counts(size))
        in_split = self.tokens / len(self)
        order = range(len(chosen)) if seed is None else torch.randperm(len(chosen), generator=draw).tolist()
        for index in order:
            yield self._batch(chosen[index], shard, in_split)

    def _batch(self, rows: Tensor, shard: slice, in_split: float) -> Batch:
        own = rows[shard]
        source = None if self.source is None else self.source.padded(own).to(self.device)
        per_sample = float(self.target.lengths[rows].sum() - len(rows)) / len(rows)
        texts = tuple(self.texts[row] for row in own.tolist()) if self.texts else ()
        content = Sequences(source, self.target.padded(own).to(self.device), per_sample, in_split, texts)
        return Batch(content, len(own), len(rows))

    def _lengths(self) -> Tensor:
        """Return the tokens of each sequence, of a pair those of the longer."""
        lengths = self.target.lengths[self.rows]
        return lengths if self.source is None else lengths.maximum(self.source.lengths[self.rows])

    def _counts(self, size: int) -> list[int]:
        """Return the numbers of sequences of the batches, from the shortest sequences to the longest."""
        counts = [0]
        for length in self._lengths().sort().values.tolist():
            if counts[-1] and (counts[-1] + 1) * length > size:
                counts.append(0)
            counts[-1] += 1
        return counts
