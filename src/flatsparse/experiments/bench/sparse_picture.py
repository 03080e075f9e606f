"""The picture of speeds: a line for each form, and a mark where it breaks even with the dense one."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from flatsparse.experiments.bench.results import Table
from flatsparse.experiments.bench.sparse_curves import SPARSITY, Axis, Curve, crossing
from flatsparse.experiments.bench.sparse_forms import CONTROL, MASKED
from flatsparse.experiments.plotting import LINE, caption, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GRAY = "#999999"  # of the masked form, which is the dense one to all but the eye
COLORS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
ACROSS = 4  # panels


def speeds(tables: Sequence[Table], axis: Axis = SPARSITY) -> Figure:
    """Return the speeds of all cases, a panel for each case and kind of work; the line at 1 is the dense form.

    Both axes are logarithmic; bars are 95 % intervals, rings where a form breaks even.
    """
    from matplotlib.figure import Figure

    panels = [(f"{table.title}: {kind}", every) for table in tables for kind, every in table.speeds.items()]
    across = min(ACROSS, len(panels))
    down = math.ceil(len(panels) / across)
    figure = Figure(figsize=(3.6 * across, 2.9 * down + 0.4), layout="constrained")
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    names = dict.fromkeys(form for _, every in panels for form in every if form not in (CONTROL, MASKED))
    colors = {MASKED: GRAY, **dict(zip(names, COLORS * len(names), strict=False))}
    for place, (title, every) in zip(axes, panels, strict=False):
        _panel(place, title, every, axis, colors)
    for unused in axes[len(panels) :]:
        unused.set_visible(False)
    lines = {line.get_label(): line for place in axes for line in place.get_lines() if line.get_label() in colors}
    figure.legend(lines.values(), lines.keys(), loc="outside upper center", ncols=len(lines), frameon=False)
    return figure


def _panel(place: Axes, title: str, every: Mapping[str, Curve], axis: Axis, colors: Mapping[str, str]) -> None:
    values = sorted({value for curve in every.values() for value in curve})
    for form, curve in every.items():
        if form == CONTROL:
            continue
        places = [axis.place(value) for value in curve]
        reach = [[s.mean - s.low for s in curve.values()], [s.high - s.mean for s in curve.values()]]
        means = [speed.mean for speed in curve.values()]
        place.plot(places, means, "o-", color=colors[form], markersize=3, linewidth=1.2, label=form)
        place.errorbar(places, means, yerr=reach, fmt="none", color=colors[form], linewidth=0.8)
        found = crossing(curve, axis)
        if found.at is not None and not found.before:
            place.plot([axis.place(found.at)], [1], "o", color=colors[form], markerfacecolor="none", markersize=8)
    place.axhline(1, color=LINE, linewidth=1)
    place.set_yscale("log", base=2)
    place.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    place.set_xticks([axis.place(value) for value in values], [axis.text(value) for value in values], fontsize=8)
    place.set_xlabel(axis.label, fontsize=8)
    place.set_title(caption(textwrap.fill(title, 52)), fontsize=8)
    plain(place)
