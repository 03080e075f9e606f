"""The pictures of docs/evidence-methods.md; `evidence_methods.py` draws them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from evidence_methods_page import SWEEPS, Cells, by_rho, gaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flatsparse.experiments.labels import COLORS, color, label
from flatsparse.experiments.recipes.evidence import NOISE, RHO, labels
from flatsparse.experiments.stats import mean_interval

SHOWN = {**COLORS, "none": "black"}  # which grey noise would be taken for
LOWEST = -10  # what lies below is told, not drawn
ADDED = ("s2sam", "sam", "random")
CIFAR = ("main", "fixed", "short", "noise")  # in which a picture has them


def added(axis: Axes, places: Sequence[tuple[str, Any]]) -> None:
    """The gain that each sharpness adds to plain training at each place, with 95 % intervals."""
    for height, (_, place) in enumerate(places):
        for shift, name in enumerate(ADDED):
            found = gaps(place, name)
            if len(found) > 1:
                d = mean_interval(found)
                if d.mean < LOWEST:
                    beyond = {
                        "va": "center",
                        "fontsize": 8,
                        "color": color(name),
                        "transform": axis.get_yaxis_transform(),
                    }
                    axis.text(0.01, height + 0.22 * (shift - 1), f"← {d.mean:.0f}".replace("-", "−"), **beyond)
                    continue
                axis.errorbar(
                    [d.mean],
                    [height + 0.22 * (shift - 1)],
                    xerr=d.half if d.bounded else 0.0,
                    fmt="o",
                    markersize=4,
                    color=color(name),
                )
    axis.axvline(0, color="#333333", linewidth=1)
    axis.set_yticks(range(len(places)), [row for row, _ in places])
    axis.set_ylim(len(places) - 0.5, -0.5)  # the first on top
    axis.set_xlabel("difference to plain training, points")
    axis.spines[["top", "right"]].set_visible(False)


def explained(figure: Figure, names: Sequence[str]) -> None:
    """One legend for all of a figure's axes."""
    handles = [figure.axes[0].plot([], [], "o-", color=SHOWN[name], label=label(name))[0] for name in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(names), frameon=False)


def digits(cells: Cells) -> Figure:
    """Methods on digits, by labels."""
    figure = Figure(figsize=(9.2, 7.2), layout="constrained")
    for axis, noisy in zip(figure.subplots(1, 2, sharey=True), RHO["digits"], strict=True):
        added(axis, [(where[1], p) for where, p in cells.items() if where[0] == "digits" and where[2] == labels(noisy)])
        axis.set_title(labels(noisy), fontsize=10)
    explained(figure, ADDED)
    return figure


def cifar(cells: Cells) -> Figure:
    """All that is compared on CIFAR-10."""
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    notes = {"short": ", not fitted", "noise": f", {labels(NOISE)}"}
    found = [(where, place) for name in CIFAR for where, place in cells.items() if where[0] == name]
    added(figure.subplots(), [(where[1] + notes.get(where[0], ""), place) for where, place in found])
    explained(figure, ADDED)
    return figure


def rho(cells: Cells) -> Figure:
    """Test accuracy over ρ, and training accuracy below it."""
    figure = Figure(figsize=(10.5, 5.2), layout="constrained")
    names = ("none", *ADDED, "momentum")
    axes = figure.subplots(2, 4, sharex="col").T
    settings = [(data, sweep, noisy) for data, sweep in SWEEPS.items() for noisy in RHO[data]]
    for column, (data, sweep, noisy) in zip(axes, settings, strict=True):
        there = by_rho(cells, sweep, labels(noisy))
        for axis, value in zip(column, ("test_accuracy", "train_accuracy"), strict=True):
            for name in names:
                means = {
                    rho: statistics.fmean(r[value] for r in place[name].values())
                    for rho, place in there.items()
                    if name in place
                }
                axis.plot(list(means), list(means.values()), color=SHOWN[name], marker="o", markersize=3)
            axis.set_xscale("log")
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(alpha=0.3)
        column[0].set_title(f"{'CIFAR-10' if data == 'cifar10' else data}, {labels(noisy)}", fontsize=10)
        column[1].set_xlabel("ρ")
    axes[0][0].set_ylabel("test accuracy, %")
    axes[0][1].set_ylabel("training accuracy, %")
    explained(figure, names)
    return figure


PICTURES = {"evidence-methods": digits, "evidence-methods-cifar": cifar, "evidence-methods-rho": rho}
