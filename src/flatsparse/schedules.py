"""When a rule acts, and how strongly: small frozen functions of the optimizer step, counted from 1."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

Timetable = Callable[[int], bool]  # step -> whether
Schedule = Callable[[int], float]  # step -> how much


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
    def last(self) -> int:
        """The last step at which it is true (``start`` when there is none)."""
        return self.start + max(0, self.until - self.start) // self.period * self.period


@dataclass(frozen=True)
class At:
    """True at the given steps."""

    steps: frozenset[int]

    def __call__(self, step: int) -> bool:
        return step in self.steps


@dataclass(frozen=True)
class AnyOf:
    """True when one of several timetables is."""

    timetables: tuple[Timetable, ...]

    def __call__(self, step: int) -> bool:
        return any(timetable(step) for timetable in self.timetables)


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
    """From ``first`` at step ``start`` to ``last`` at step ``until``, held outside. The shape is the subclass's."""

    first: float
    last: float
    until: int
    start: int = 0

    @abstractmethod
    def remaining(self, passed: float) -> float:
        """What is left of the way, from 1 to 0, when the fraction ``passed`` of the steps is over."""

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
    """The cube of what is left (gradual pruning: Zhu & Gupta 2017, eq. 1).

    >>> Cubic(0.0, 0.9, until=10)(10)
    0.9
    """

    def remaining(self, passed: float) -> float:
        return (1 - passed) ** 3
