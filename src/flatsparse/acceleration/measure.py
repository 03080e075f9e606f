"""The measurement that decides whether a layer is faster sparse: both forms side by side, once for each kind of layer."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flatsparse.acceleration import products
from flatsparse.acceleration.block_index import OUTPUTS, BlockIndex
from flatsparse.acceleration.index import Index, index_of

PAIRS = 5  # of measurements; a median of fewer says little
TRIES = 3  # while they disagree, as on a machine that is busy with something else
MARGIN = 1.1  # the median of the ratios by which sparse must be faster
SAMPLES = 512  # more take longer and tell no more
DENSEST = 0.5  # of the entries active: above, sparse is not tried


@dataclass(frozen=True)
class Kind:
    """What the speed of a linear layer depends on.

    Attributes:
        rows, columns: of its weight.
        density: the share of active entries, in percent.
        samples: the size of the batch, rounded down to a power of two.
        wants_x, wants_values: which gradients are taken; none for a forward alone.
        threads: that torch runs on.
        blocks: the active entries form whole 16×1 blocks.
    """

    rows: int
    columns: int
    density: int
    samples: int
    wants_x: bool
    wants_values: bool
    threads: int
    blocks: bool = False

    @classmethod
    def of(cls, index: Index, samples: int, *, wants_x: bool, wants_values: bool) -> Kind:
        """Return the kind of a layer, of an index, that is called with a number of samples."""
        density = max(1, round(100 * index.entries / max(1, index.rows * index.columns)))
        near = 1 << samples.bit_length() >> 1
        wants, threads = (wants_x, wants_values), torch.get_num_threads()
        return cls(index.rows, index.columns, density, near, *wants, threads, isinstance(index, BlockIndex))


_known: dict[Kind, float] = {}  # what this process has measured, or was told


def speedup(kind: Kind) -> float:
    """Return how many times as fast as dense a linear layer is, or 0 where not faster by more than the noise.

    Measured once in a process: forward and the gradients of both forms, in turn, for some milliseconds.
    """
    if kind not in _known:
        _known[kind] = _measured(kind)
    return _known[kind]


def known_speedups() -> list[list[float]]:
    """Return what this process has measured, as plain values: where a run is resumed, it must compute in the same forms."""
    return [[*dataclasses.astuple(kind), ratio] for kind, ratio in _known.items()]


def remember(speedups: Iterable[Sequence[Any]]) -> None:
    """Take what ``known_speedups`` gave in another process, in the place of measurements."""
    _known.update({Kind(*values[:-1]): float(values[-1]) for values in speedups})


def _measured(kind: Kind) -> float:
    source = torch.Generator().manual_seed(0)  # the user's own random numbers stay as they are

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, device="cpu", dtype=torch.float32)

    samples = min(kind.samples, SAMPLES)
    x, dy, weight = normal(samples, kind.columns), normal(samples, kind.rows), normal(kind.rows, kind.columns)
    outputs = OUTPUTS if kind.blocks else 1  # that are active together
    chances = torch.rand(kind.rows // outputs, kind.columns, generator=source, device="cpu", dtype=torch.float32)
    mask = (chances < kind.density / 100).repeat_interleave(outputs, 0)
    weight, index = weight * mask, index_of(mask)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        return _ratio(lambda: _dense(kind, x, weight, dy), lambda: _sparse(kind, x, weight, dy, index))


def _dense(kind: Kind, x: Tensor, weight: Tensor, dy: Tensor) -> None:
    F.linear(x, weight)
    if kind.wants_x:
        torch.mm(dy, weight)
    if kind.wants_values:
        torch.mm(dy.t(), x)


def _sparse(kind: Kind, x: Tensor, weight: Tensor, dy: Tensor, index: Index) -> None:
    _, values = products.forward(x, weight, None, index)
    into = torch.empty_like(weight)
    products.backward(x, values, dy, index, wants_x=kind.wants_x, wants_values=kind.wants_values, into=into)


def _ratio(dense: Callable[[], None], sparse: Callable[[], None]) -> float:
    """The median ratio of times, over pairs that follow each other; 0 below the margin, or unless all pairs but one agree."""
    dense()
    sparse()
    for _ in range(TRIES):
        ratios = sorted(_seconds(dense) / max(_seconds(sparse), 1e-9) for _ in range(PAIRS))
        if ratios[1] > 1 or ratios[-2] <= 1:
            break
    median = statistics.median(ratios)
    return median if median >= MARGIN and ratios[1] > 1 else 0.0


def _seconds(call: Callable[[], None]) -> float:
    # One thread's own time does not count what other programs take.
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    call()
    return clock() - start
