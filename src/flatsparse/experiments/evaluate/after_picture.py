"""The picture of scores after changes: each arm's means, and its paired differences to the first arm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flatsparse.experiments.evaluate.after_table import AfterTable
from flatsparse.experiments.labels import SPARE
from flatsparse.experiments.plotting import LINE, caption, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE = "after.png"


def after_picture(table: AfterTable) -> Figure:
    """Draw the means of all arms after each change and, of several arms, the differences to the first with their intervals."""
    from matplotlib.figure import Figure

    compared = len(table.arms) > 1
    figure = Figure(figsize=(4.2 + 0.6 * len(table.changes) * (1 + compared), 3.8), layout="constrained")
    panels = figure.subplots(1, 1 + compared, squeeze=False)[0]
    colors = {arm: LINE if number == 0 else SPARE[(number - 1) % len(SPARE)] for number, arm in enumerate(table.arms)}
    for arm in table.arms:
        means = [table.mean(arm, change) for change in table.changes]
        panels[0].plot(means, "o", color=colors[arm], label=caption(arm))
    panels[0].set_ylabel(caption(f"test {table.score}"))
    if compared:
        panels[1].axhline(0, color=LINE, linewidth=0.8)
        panels[1].set_ylabel(caption(f"difference to {table.arms[0]}"))
        step = 0.6 / len(table.arms)
        for number, arm in enumerate(table.arms[1:]):
            for place, change in enumerate(table.changes):
                gain = table.gain(arm, change)
                if gain is not None:
                    half = gain.half if gain.bounded else 0.0
                    panels[1].errorbar(
                        place + number * step - 0.2, gain.mean, half, fmt="o", color=colors[arm], capsize=3
                    )
    for panel in panels:
        panel.set_xticks(
            range(len(table.changes)), [caption(change) for change in table.changes], rotation=30, ha="right"
        )
        plain(panel, "y")
    panels[0].legend(frameon=False, fontsize="small")
    return figure
