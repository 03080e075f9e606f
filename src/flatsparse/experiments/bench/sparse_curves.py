"""Speed along an axis, and where it crosses that of the dense form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flatsparse.experiments.stats import Interval

Curve = Mapping[float, Interval]  # speeds, times that of the dense form, by what they were measured at


@dataclass(frozen=True)
class Axis:
    """What speeds are drawn over.

    Attributes:
        label: of the axis.
        place: where a value stands on it.
        value: what stands at a place.
        text: a value as it is written.
    """

    label: str
    place: Callable[[float], float]
    value: Callable[[float], float]
    text: Callable[[float], str]


# By the logarithm of what is left, over which the logarithm of a form's speed is nearly straight where products decide it.
SPARSITY = Axis("zeros", lambda s: -math.log(1 - s), lambda place: 1 - math.exp(-place), lambda s: f"{100 * s:.3g} %")
BATCH = Axis("batch", math.log, math.exp, lambda n: f"{n:.0f}")


@dataclass(frozen=True)
class Crossing:
    """From where on a form is faster than the dense one at all that was measured.

    Attributes:
        at: the value on the axis, or None where it is not faster, beyond the noise, at the last one.
        before: whether it is faster at the first one already, so that the crossing, if any, lies before it.
    """

    at: float | None
    before: bool = False


def crossing(curve: Curve, axis: Axis) -> Crossing:
    """Return where a curve's medians cross 1 for good: on the straight line between two neighbours, both axes logarithmic.

    >>> def speed(value): return Interval(value, value, value, 6)
    >>> round(crossing({0.5: speed(0.5), 0.75: speed(2.0), 0.875: speed(4.0)}, SPARSITY).at, 4)
    0.6464
    """
    values = sorted(curve)
    if curve[values[-1]].low <= 1:
        return Crossing(None)
    slower = [number for number, value in enumerate(values) if curve[value].mean < 1]
    if not slower:
        return Crossing(values[0], before=True)
    last = slower[-1]
    (a, low), (b, high) = ((axis.place(v), math.log(curve[v].mean)) for v in values[last : last + 2])
    return Crossing(axis.value(a - low * (b - a) / (high - low)))


def crossing_text(curve: Curve, axis: Axis) -> str:
    """Return where a form breaks even, in words."""
    found, values = crossing(curve, axis), sorted(curve)
    if found.at is None:
        return f"not up to {axis.text(values[-1])}"
    return f"below {axis.text(found.at)}" if found.before else axis.text(found.at)
