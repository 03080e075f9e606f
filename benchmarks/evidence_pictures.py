"""The pictures of docs/evidence.md; `evidence.py` draws them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evidence_page import SWEEPS, Cells, by_rho, gaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flatsparse.lab.recipes.evidence import NOISE, RHO, labels
from flatsparse.lab.reporting import COLORS, LABELS
from flatsparse.lab.statistics import paired_difference

ADDED = ("s2sam", "sam", "random")
CIFAR = ("main", "fixed", "short", "noise")  # in which a picture has them


def added(axis: Axes, places: Sequence[tuple[str, Any]]) -> None:
    """What each sharpness adds to plain training at each place, with 95 % intervals."""
    for height, (_, place) in enumerate(places):
        for shift, name in enumerate(ADDED):
            found = gaps(place, name)
            if len(found) > 1:
                d = paired_difference(found, [0.0] * len(found))
                axis.errorbar(
                    [d.mean],
                    [height + 0.22 * (shift - 1)],
                    xerr=d.half if d.bounded else 0.0,
                    fmt="o",
                    markersize=4,
                    color=COLORS[name],
                )
    axis.axvline(0, color="#333333", linewidth=1)
    axis.set_yticks(range(len(places)), [row for row, _ in places])
    axis.set_ylim(len(places) - 0.5, -0.5)  # the first on top
    axis.set_xlabel("difference to plain training, points")
    axis.spines[["top", "right"]].set_visible(False)


def explained(figure: Figure, names: Sequence[str]) -> None:
    """One legend for all of a figure's axes."""
    handles = [figure.axes[0].plot([], [], "o-", color=COLORS[name], label=LABELS[name])[0] for name in names]
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
    """Test and training accuracy over ρ."""
    figure = Figure(figsize=(9.2, 6.0), layout="constrained")
    axes = figure.subplots(2, 2, sharey="row")
    for line, (data, sweep) in zip(axes, SWEEPS.items(), strict=True):
        for axis, noisy in zip(line, RHO[data], strict=True):
            there = by_rho(cells, sweep, labels(noisy))
            for name in ("none", *ADDED, "momentum"):
                for value, style in (("test_accuracy", "-"), ("train_accuracy", ":")):
                    means = {
                        rho: sum(r[value] for r in place[name].values()) / len(place[name])
                        for rho, place in there.items()
                        if name in place
                    }
                    axis.plot(list(means), list(means.values()), style, color=COLORS[name], marker="o", markersize=3)
            axis.set_xscale("log")
            axis.set_title(f"{'CIFAR-10' if data == 'cifar10' else data}, {labels(noisy)}", fontsize=10)
            axis.set_xlabel("ρ")
            axis.spines[["top", "right"]].set_visible(False)
        line[0].set_ylabel("accuracy, %: test, dotted: training")
    explained(figure, ("none", *ADDED, "momentum"))
    return figure


PICTURES = {"evidence": digits, "evidence-cifar": cifar, "evidence-rho": rho}
