"""The picture of docs/sparsity.md; `sweep_page.py` writes it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sweep import NOISES, Place
from sweep_claims import QUANTITIES, Pairs, logarithm, swept

from flatsparse.experiments.labels import color
from flatsparse.experiments.plotting import plain
from flatsparse.experiments.stats import mean_interval

STYLES = {0.0: "-", 0.2: "--"}  # by share of wrong labels
PLAIN = "black"


def drawn(runs: Mapping[Place, Pairs]) -> Figure:
    """The gain, the largest eigenvalue and Ra over sparsity, each with 95 % intervals over seeds."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    first, *others = figure.subplots(1, 3)
    for noise in NOISES:
        own = swept(runs, noise)
        _line(first, {s: pairs.gains for s, pairs in own.items()}, color=color("s2sam"), linestyle=STYLES[noise])
        for axis, quantity in zip(others, QUANTITIES, strict=True):
            read = logarithm(quantity)
            for arm, shade in (("plain", PLAIN), ("s2sam", color("s2sam"))):
                values = {s: [read(line) for line in getattr(pairs, arm)] for s, pairs in own.items()}
                _line(axis, values, power=True, color=shade, linestyle=STYLES[noise])
    first.axhline(0, color=PLAIN, linewidth=1)
    first.set_title("gain of S²-SAM, points", fontsize=10)
    for axis, name in zip(others, QUANTITIES.values(), strict=True):
        axis.set_yscale("log")
        axis.set_title(f"{name}, active weights", fontsize=10)
    for axis in (first, *others):
        plain(axis)
        axis.set_xlabel("sparsity")
        axis.set_xticks([_tenfolds(s) for s in own], [f"{s:.0%}" for s in own])
    shown = (("plain", PLAIN, "-"), ("S²-SAM", color("s2sam"), "-"))
    labels = (("right labels", "grey", "-"), ("20 % wrong labels", "grey", "--"))
    handles = [first.plot([], [], color=c, linestyle=s, label=name)[0] for name, c, s in (*shown, *labels)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _tenfolds(sparsity: float) -> float:
    return -math.log10(1 - sparsity)


def _line(axis: Axes, values: Mapping[float, Sequence[float]], *, power: bool = False, **style: Any) -> None:
    """Draw means with intervals over sparsity; with ``power`` of what values are the logarithms of."""
    found = [mean_interval(own) for own in values.values()]

    def scaled(heights: Iterable[float]) -> list[float]:
        return [math.exp(height) if power else height for height in heights]

    means, lows, highs = (scaled(getattr(one, end) for one in found) for end in ("mean", "low", "high"))
    errors = [[m - low for m, low in zip(means, lows, strict=True)], [h - m for m, h in zip(means, highs, strict=True)]]
    axis.errorbar([_tenfolds(s) for s in values], means, yerr=errors, marker="o", markersize=3, capsize=2, **style)
