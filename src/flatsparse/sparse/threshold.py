"""The k-th largest of many scores, found between two bounds that a sample gives, without a copy of the scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

FEW = 1 << 16  # scores that need no sample
SAMPLE = 1 << 15  # the most in a sample, which is a sixteenth of smaller sets


class Scores:
    """Scores in several tensors, counted and chosen from one tensor at a time.

    Args:
        parts: any shapes; NaN ranks lowest, with −inf.
        among: for each of them bool, its shape: which are candidates; None for all.
    """

    def __init__(self, parts: Sequence[Tensor], among: Sequence[Tensor | None]) -> None:
        self._rows = [
            (part.reshape(-1), None if only is None else only.reshape(-1))
            for part, only in zip(parts, among, strict=True)
        ]
        self.size = sum(len(part) if only is None else count_true(only) for part, only in self._rows)

    def above(self, bound: float) -> int:
        """Return how many are larger than a bound."""
        return self._count(lambda s: s > bound)

    def from_(self, bound: float) -> int:
        """Return how many are a bound or larger."""
        return self._count(lambda s: s >= bound)

    def between(self, low: float, high: float) -> Tensor:
        """Return those that are larger than one bound and smaller than another, (n,)."""
        return self._gather([mask.nonzero().squeeze(1) for mask in self._where(lambda s: (s > low) & (s < high))])

    def all(self) -> Tensor:
        """Return all of them, (n,)."""
        return _joined([part if only is None else part[only] for part, only in self._rows])

    def sample(self) -> Tensor:
        """Return some, (m,), the same at every call."""
        source, total = torch.Generator().manual_seed(0), sum(len(part) for part, _ in self._rows)
        share = min(1 / 16, SAMPLE / total)
        drawn = [
            torch.randint(max(1, len(part)), (math.ceil(share * len(part)),), generator=source, device="cpu")
            for part, _ in self._rows
        ]
        drawn = [at.to(part.device) for at, (part, _) in zip(drawn, self._rows, strict=True)]
        return self._gather(
            [at if only is None else at[only[at]] for at, (_, only) in zip(drawn, self._rows, strict=True)]
        )

    def _gather(self, places: Sequence[Tensor]) -> Tensor:
        return _joined([part[at] for at, (part, _) in zip(places, self._rows, strict=True)])

    def _count(self, which: Callable[[Tensor], Tensor]) -> int:
        return sum(map(count_true, self._where(which)))

    def _where(self, which: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        for part, only in self._rows:
            mask = which(part)
            yield mask if only is None else mask.logical_and_(only)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.to(parts[0].device) for part in parts]) if len(parts) > 1 else parts[0]


def kth_largest(scores: Scores, k: int) -> float:
    """Return the k-th largest score, −inf where that is NaN; k is from 1 to the number of scores."""
    if scores.size <= FEW:
        return _kth_of(scores.all(), k)
    low, high = _bounds(scores, k)
    while True:
        if scores.above(low) < k:
            if low == -math.inf or scores.from_(low) >= k:
                return low
            low, high = -math.inf, low  # the sample was unlucky
            continue
        more = scores.from_(high)
        if more < k:
            return _kth_of(scores.between(low, high), k - more)
        if high == math.inf or scores.above(high) < k:
            return high
        low, high = high, math.inf


def _bounds(scores: Scores, k: int) -> tuple[float, float]:
    """Return two scores that the k-th largest is all but surely between, or one of; infinities where there are none."""
    sample = scores.sample()
    size = len(sample)
    share = k / scores.size
    reach = 4 * math.sqrt(size * share * (1 - share)) + 4  # four standard deviations of a rank
    first, last = math.floor(size * share - reach), math.ceil(size * share + reach)  # ranks, from 1
    low = -math.inf if last > size else _kth_of(sample, last)
    high = math.inf if first < 1 else _kth_of(sample, first)
    return low, high


def _kth_of(values: Tensor, k: int) -> float:
    values = torch.where(values.isnan(), -torch.inf, values)
    return float(values.kthvalue(len(values) - k + 1).values)


def count_true(mask: Tensor) -> int:
    """Return for how many entries a mask is true."""
    return int(torch.count_nonzero(mask))
