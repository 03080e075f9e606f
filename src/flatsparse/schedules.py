"""Timetables and schedules: frozen functions of the optimizer step, counted from 1, that say when a rule acts and how strongly.

The timetables here list the steps at which they are true (``ranges``), so that planning a long run takes no walk through its
steps; any other function of the step is called at each.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

Timetable = Callable[[int], bool]  # step -> due or not
Schedule = Callable[[int], float]  # step -> value


@dataclass(frozen=True)
class Every:
    """True at every ``period``-th step after ``start`` up to and including ``until``.

    >>> [step for step in range(1, 10) if Every(3, until=8)(step)]
    [3, 6]
    """

    period: int
    until: int
    start: int = 0

    def __call__(self, step: int) -> bool:
        return self.start < step <= self.until and (step - self.start) % self.period == 0

    @property
    def ranges(self) -> tuple[range, ...]:
        return (range(self.start + self.period, self.until + 1, self.period),)

    @property
    def last(self) -> int:
        """The last step at which it is true (``start`` when there is none)."""
        return self.start + max(0, self.until - self.start) // self.period * self.period


@dataclass(frozen=True)
class At:
    """True at the given steps."""

    steps: frozenset[int]

    def __call__(self, step: int) -> bool:
        return step in self.steps

    @property
    def ranges(self) -> tuple[range, ...]:
        return tuple(range(step, step + 1) for step in sorted(self.steps))


@dataclass(frozen=True)
class AnyOf:
    """True when one of several timetables is."""

    timetables: tuple[Timetable, ...]

    def __call__(self, step: int) -> bool:
        return any(timetable(step) for timetable in self.timetables)


class DueSteps:
    """The steps of a run at which one of several timetables is true, counted without a walk through them.

    Ours, because a run of 10¹² steps has a plan too. A timetable without ``ranges``, such as a user's function, is
    called at every step.

    Args:
        timetables: of the rules.
        first, last: steps of the run, both included.

    >>> due = DueSteps([Every(100, until=10**12), At(frozenset({150, 200}))], first=2, last=10**12)
    >>> due.count(0, 1000), due.count(0, 10**12)
    (11, 10000000001)
    """

    def __init__(self, timetables: Iterable[Timetable], first: int, last: int) -> None:
        clipped = {_within(r, first, last) for timetable in timetables for r in _ranges(timetable, first, last)}
        self._long = sorted((r for r in clipped if len(r) > 1), key=lambda r: (r.start, r.step))
        self._single = sorted({r[0] for r in clipped if len(r) == 1 and not any(r[0] in long for long in self._long)})

    def count(self, after: int, until: int) -> int:
        """The number of due steps after a step, up to and including another."""
        single = bisect.bisect_right(self._single, until) - bisect.bisect_right(self._single, after)
        return max(0, single) + _union([_within(r, after + 1, until) for r in self._long])

    def thinned(self, stride: int = 1) -> Iterator[int]:
        """The due steps in order, of each regular sequence only every ``stride``-th and the last."""
        taken = [part for r in self._long for part in (r[::stride], r[-1:])]
        merged = heapq.merge(self._single, *taken)
        return (step for step, _ in itertools.groupby(merged))


def _ranges(timetable: Timetable, first: int, last: int) -> Iterable[range]:
    if isinstance(timetable, AnyOf):
        return itertools.chain.from_iterable(_ranges(one, first, last) for one in timetable.timetables)
    known: Iterable[range] | None = getattr(timetable, "ranges", None)
    return (range(s, s + 1) for s in range(first, last + 1) if timetable(s)) if known is None else known


def _within(steps: range, first: int, last: int) -> range:
    """The part of a rising sequence from ``first`` to ``last``, both included."""
    start = max(steps.start, steps.start + -((steps.start - first) // steps.step) * steps.step)
    return range(start, min(steps.stop, last + 1), steps.step)


def _union(sequences: list[range]) -> int:
    """The size of the union of rising sequences: of each one, the numbers not shared with those before."""
    before: list[range] = []
    total = 0
    for steps in sequences:
        if len(steps) and steps not in before:
            shared = {_common(steps, other) for other in before}
            total += len(steps) - _union([s for s in shared if len(s)])
            before.append(steps)
    return total


def _common(a: range, b: range) -> range:
    """The numbers that are in both of two rising sequences, by the Chinese remainder theorem."""
    divisor = math.gcd(a.step, b.step)
    distance = b.start - a.start
    if distance % divisor:
        return range(0)
    period = a.step * (b.step // divisor)
    steps = distance // divisor * pow(a.step // divisor, -1, b.step // divisor) % (b.step // divisor)
    return _within(
        range(a.start + steps * a.step, min(a.stop, b.stop), period), max(a.start, b.start), min(a.stop, b.stop)
    )


@dataclass(frozen=True)
class Constant:
    """The same value at every step."""

    value: float

    def __call__(self, step: int) -> float:
        return self.value


@dataclass(frozen=True)
class InverseSqrt:
    """``first / √step`` (a falling ρ: Ji et al. 2024, Remark 1, ``√(c/t)`` with ``c = first²``).

    >>> InverseSqrt(0.1)(4)
    0.05
    """

    first: float

    def __call__(self, step: int) -> float:
        return self.first / math.sqrt(step)


@dataclass(frozen=True)
class Late:
    """0 up to and including step ``after``, ``value`` from then on (Late SAM: Zhou et al. 2025).

    "Sharpness-Aware Minimization Efficiently Selects Flatter Minima Late in Training", ICLR 2025 (arXiv 2410.10373): SAM in the
    last epochs alone, the last 25 of 200 in their Figure 1, ends about where SAM from the start does. While ρ is 0
    ``SAM`` takes one gradient a step, and S²-SAM is its base.

    >>> [Late(0.1, after=8)(step) for step in (1, 8, 9)]
    [0.0, 0.0, 0.1]
    """

    value: float
    after: int

    def __call__(self, step: int) -> float:
        return self.value if step > self.after else 0.0


@dataclass(frozen=True)
class Stages:
    """One value after another; each boundary is the first step of the next.

    >>> [Stages((3.0, 2.0, 0.0), boundaries=(10, 20))(step) for step in (9, 10, 19, 20)]
    [3.0, 2.0, 2.0, 0.0]
    """

    values: tuple[float, ...]
    boundaries: tuple[int, ...]

    def __call__(self, step: int) -> float:
        return self.values[sum(step >= boundary for boundary in self.boundaries)]


@dataclass(frozen=True)
class Ramp(ABC):
    """From ``first`` at step ``start`` to ``last`` at step ``until``, constant outside; subclasses define the shape."""

    first: float
    last: float
    until: int
    start: int = 0

    @abstractmethod
    def remaining(self, passed: float) -> float:
        """The remaining fraction of the way, from 1 to 0, when the fraction ``passed`` of the steps is over."""

    def __call__(self, step: int) -> float:
        passed = (step - self.start) / max(1, self.until - self.start)
        passed = min(1.0, max(0.0, passed))
        return self.last + (self.first - self.last) * self.remaining(passed)


class Linear(Ramp):
    """A straight line.

    >>> Linear(1.0, 0.0, until=4)(1)
    0.75
    """

    def remaining(self, passed: float) -> float:
        return 1 - passed


class Cosine(Ramp):
    """Half a cosine (RigL: Evci et al. 2020, eq. 1, ``α/2 (1 + cos(πt/T_end))``).

    >>> round(Cosine(0.3, 0.0, until=100)(50), 3)
    0.15
    """

    def remaining(self, passed: float) -> float:
        return (1 + math.cos(math.pi * passed)) / 2


class Cubic(Ramp):
    """The cube of the remaining fraction (gradual pruning: Zhu & Gupta 2017, eq. 1).

    >>> Cubic(0.0, 0.9, until=10)(10)
    0.9
    """

    def remaining(self, passed: float) -> float:
        return (1 - passed) ** 3
