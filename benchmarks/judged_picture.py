"""A picture of paired differences: a dot and an interval for each, settings side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from judged import Claim
from matplotlib.figure import Figure

from flatsparse.experiments.plotting import LINE, plain


def differences(
    panels: Mapping[str, Mapping[str, Claim]],
    *,
    color: Callable[[str], str],
    legend: Mapping[str, str],
    xlabel: str = "difference to plain, points",
    lowest: float = -10.0,
) -> Figure:
    """Draw claims as dots with 95 % intervals, filled where Holm's p is below 0.05.

    Args:
        panels: the claims of each setting, by the name of their row; all have the same rows.
        color: of a row.
        legend: what the colors are, by color.
        lowest: a mean below it is written at the edge, not drawn.
    """
    rows = list(next(iter(panels.values())))
    figure = Figure(figsize=(9.2, 1.3 + 0.27 * len(rows)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (title, found) in zip(axes, panels.items(), strict=True):
        for height, (name, claim) in enumerate(found.items()):
            own, interval = color(name), claim.interval
            if interval.mean < lowest:
                where = {"va": "center", "fontsize": 8, "transform": axis.get_yaxis_transform()}
                axis.text(0.01, height, f"← {interval:+.0f}".replace("-", "−"), color=own, **where)
                continue
            half = interval.half if interval.bounded else 0.0
            inside = own if claim.sure else "white"
            axis.errorbar(
                [interval.mean], [height], xerr=half, fmt="o", markersize=5, color=own, markerfacecolor=inside
            )
        axis.axvline(0, color=LINE, linewidth=1)
        axis.set_yticks(range(len(rows)), rows)
        axis.set_ylim(len(rows) - 0.5, -0.5)  # the first on top
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(xlabel)
        plain(axis, "x")
    handles = [figure.axes[0].plot([], [], "o-", color=one, label=text)[0] for one, text in legend.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure
