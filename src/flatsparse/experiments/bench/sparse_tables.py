"""The measured speeds of a case as a table, sentences and a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from flatsparse.experiments.bench.results import Table
from flatsparse.experiments.bench.sparse_curves import SPARSITY, Axis, Curve, crossing, crossing_text
from flatsparse.experiments.bench.sparse_forms import CONTROL, DENSE, MASKED
from flatsparse.experiments.bench.sparse_rivals import NOT_INSTALLED
from flatsparse.experiments.stats import Interval

Points = Mapping[str, Mapping[float, Mapping[str, Any]]]  # records by kind of work and by what they were measured at


def speed_table(
    name: str, title: str, points: Points, *, threads: int | None, said: Sequence[str] = (), axis: Axis = SPARSITY
) -> Table:
    """Return the table of a case.

    Args:
        name, title: of the case.
        points: what was measured, each with ``forms``, ``left_out`` and ``layers``.
        threads: of the CPU; None on a GPU.
        said: sentences to begin with.
        axis: what the columns are.
    """
    curves = {kind: curves_of(measured) for kind, measured in points.items()}
    values = sorted({value for measured in points.values() for value in measured})
    rows = []
    for kind, measured in points.items():
        dense = (_milliseconds(measured[value]) for value in values)
        rows.append((f"{kind}, {DENSE}, ms", *dense))
        for form, curve in curves[kind].items():
            rows.append((f"{kind}, {form}", *(_cell(curve.get(value)) for value in values)))
    on = "GPU" if threads is None else f"{threads} thread{'' if threads == 1 else 's'}"
    return Table(
        title=f"{title}, {on}",
        head=("times as fast as dense", *map(axis.text, values)),
        rows=rows,
        sentences=[
            *said,
            *_break_even(curves, axis),
            *_dense_layers(points, axis),
            *_left_out(points, axis),
            _noise(curves),
        ],
        ratios={},
        speeds=curves,
        record={
            "case": name,
            "title": title,
            "threads": threads,
            "break_even": {
                kind: {form: crossing(curve, axis).at for form, curve in every.items() if form != CONTROL}
                for kind, every in curves.items()
            },
            "points": {kind: list(measured.values()) for kind, measured in points.items()},
        },
    )


def curves_of(points: Mapping[float, Mapping[str, Any]]) -> dict[str, Curve]:
    """Return the speeds of each form but the dense one, in the order of forms, from records of points."""
    names = dict.fromkeys(form for point in points.values() for form in point["forms"] if form != DENSE)
    return {
        form: {
            value: interval(point["forms"][form]) for value, point in sorted(points.items()) if form in point["forms"]
        }
        for form in names
    }


def interval(form: Mapping[str, Any]) -> Interval:
    """Return a form's speed from its record."""
    speed = form["speed"]
    return Interval(speed["value"], speed["low"], speed["high"], len(form["seconds"]))


def _milliseconds(point: Mapping[str, Any]) -> str:
    return f"{1000 * median(point['forms'][DENSE]['seconds']):.3g}"


def _cell(speed: Interval | None) -> str:
    return "" if speed is None else f"{speed:.2f}"


def _break_even(curves: Mapping[str, Mapping[str, Curve]], axis: Axis) -> list[str]:
    """From where on forms are faster; of masks alone no speed is expected."""
    found = []
    for kind, every in curves.items():
        forms = [
            f"{form} {crossing_text(curve, axis)}" for form, curve in every.items() if form not in (CONTROL, MASKED)
        ]
        if forms:
            found.append(f"Break-even by {axis.label}, {kind}: {', '.join(forms)}.")
    return found


def _dense_layers(points: Points, axis: Axis) -> list[str]:
    """How many layers of the accelerated form ran densely, where any did, and why the first one."""
    found = []
    for kind, measured in points.items():
        dense = {at: [does for does in p["layers"].values() if does != "sparse"] for at, p in measured.items()}
        if any(dense.values()):
            few = [
                f"{len(does)} of {len(measured[at]['layers'])} at {axis.text(at)}" for at, does in dense.items() if does
            ]
            why = next(does[0] for does in dense.values() if does).removeprefix("dense: ")
            found.append(f"Accelerated layers that ran densely, {kind}: {', '.join(few)}; the first: {why}.")
    return found


def _left_out(points: Points, axis: Axis) -> list[str]:
    """The forms that are left out, each reason once, with what it held at."""
    where: dict[tuple[str, str], list[str]] = {}
    for kind, measured in points.items():
        for at, point in measured.items():
            for form, why in point["left_out"].items():
                where.setdefault((form, why), []).append(f"{kind} {axis.text(at)}")
    every, found = sum(map(len, points.values())), []
    for (form, why), places in where.items():
        if not why.startswith(NOT_INSTALLED):
            there = "" if len(places) == every else f" ({', '.join(places)})"
            found.append(f"{form} is left out{there}: {why}.")
    return found


def not_installed(points: Points) -> list[str]:
    """The rivals that are not installed, with how to get them, one sentence each."""
    found = {
        f"{form} is left out, {why}."
        for measured in points.values()
        for point in measured.values()
        for form, why in point["left_out"].items()
        if why.startswith(NOT_INSTALLED)
    }
    return sorted(found)


def _noise(curves: Mapping[str, Mapping[str, Curve]]) -> str:
    ratios = [speed.mean for every in curves.values() for speed in every.get(CONTROL, {}).values()]
    if not ratios:
        return "Noise is not known: the second dense form is missing."
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    return f"Noise: a second, identical dense form is {spread} times as fast; differences of that size say nothing."
