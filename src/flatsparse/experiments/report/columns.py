"""The columns of a comparison's report. A column is one entry here, and is shown wherever its entry says.

A row has the results of its runs (``Row.results``), so that a column may show anything that a run's ``result.json`` has.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flatsparse.experiments.compared import ComparedRow
from flatsparse.experiments.labels import label
from flatsparse.experiments.metric import ACCURACY as ACCURACIES
from flatsparse.experiments.metric import Metric

TERMINAL, ACCURACY, COST = "terminal", "accuracy", "cost"


@dataclass(frozen=True)
class Column:
    """One quantity that is reported for every row.

    Attributes:
        title: its heading on the page.
        value: its value for a row; None where the row has none.
        format: turns a value into text: a format specification, or a function.
        views: where it is a column: the terminal's table, or a table of the page by its name.
        short: its heading on the terminal, where that is another.
        note: what is said of it below the terminal's table.
        judged: colored by the verdict on the row's difference.
        in_pictures: what a picture writes beside a row, with the text in place of the braces.
    """

    title: str
    value: Callable[[Any], Any]
    format: str | Callable[[Any], str]
    views: tuple[str, ...]
    short: str = ""
    note: str = ""
    judged: bool = False
    in_pictures: str = ""

    @property
    def heading(self) -> str:
        """The heading on the terminal."""
        return self.short or self.title

    def text(self, row: ComparedRow) -> str:
        """The text of a row's cell; empty where there is no value."""
        value = self.value(row)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        return format(value, self.format) if isinstance(self.format, str) else self.format(value)

    def style(self, row: ComparedRow, meaningful: bool) -> str:
        """The verdict that colors a row's cell, as the name of a style; empty where none does."""
        return row.verdict.replace(" ", "-") if self.judged and meaningful and row.verdict is not None else ""


def _mean(row: Any) -> str:
    return row.metric.text(row.mean) + ("" if math.isnan(row.std) else f" ± {row.metric.text(row.std)}")


def _shorter(row: Any, value: float | None) -> str | None:
    """A value as text, in percent with one decimal only."""
    if value is None:
        return None
    return f"{value:.1f}" if row.metric == ACCURACIES else str(row.metric.text(value))


def _range(times: tuple[float, ...]) -> str:
    return f"{min(times):.2f} to {max(times):.2f}"


TITLE = Column("", lambda row: f"{label(row.sharpness)}" + (f" ρ={row.rho:g}" if row.rho else ""), "", (TERMINAL,))
NAME = Column("", lambda row: label(row.sharpness), "", (ACCURACY, COST))
RHO = Column("ρ", lambda row: row.rho or None, "g", (ACCURACY, COST))
GRADIENTS = Column(
    "gradients a step",
    lambda row: row.gradients_per_step,
    "g",
    (TERMINAL, COST),
    short="grads",
    note="gradients a step",
    in_pictures="{} grad.",
)
STEP_TIME = Column(
    "step time",
    lambda row: row.step_time,
    "{:.2f}×".format,
    (TERMINAL, COST),
    short="time",
    note="of a step, as a ratio to plain (median over seeds)",
    in_pictures="{} time",
)
RANGE = Column("its range", lambda row: row.step_times or None, _range, (COST,))
COLUMNS = (
    TITLE,
    NAME,
    RHO,
    Column("test", _mean, str, (TERMINAL, ACCURACY), short="test %"),
    Column(
        "against plain",
        lambda row: row.difference and row.difference.with_half(row.metric.signed),
        str,
        (TERMINAL,),
        note="points, paired by seed, ± half of the 95 % interval",
        judged=True,
    ),
    Column(
        "difference",
        lambda row: row.difference and f"{row.difference.mean:{row.metric.signed}}",
        str,
        (ACCURACY,),
        judged=True,
    ),
    Column(
        "95 % interval",
        lambda row: row.difference and row.difference.bounds(row.metric.signed),
        str,
        (ACCURACY,),
        judged=True,
    ),
    Column("training", lambda row: _shorter(row, row.train_accuracy), str, (TERMINAL, ACCURACY), short="train %"),
    Column("validation", lambda row: _shorter(row, row.validation_accuracy), str, (ACCURACY,)),
    GRADIENTS,
    STEP_TIME,
    RANGE,
    Column(
        "cosine",
        lambda row: row.cosine,
        "+.2f",
        (TERMINAL, COST),
        short="cos",
        note="between the gradients of consecutive steps",
    ),
    Column("sharpness", lambda row: statistics.fmean(row.ball), ".3f", (COST,)),
)


def columns_of(metric: Metric) -> tuple[Column, ...]:
    """The columns of a comparison by a metric: those of accuracies, in other words where it is none."""
    if metric == ACCURACIES:
        return COLUMNS
    return tuple(
        dataclasses.replace(
            column,
            short=column.short.removesuffix(" %"),
            note=f"{column.note.removeprefix('points, ')}; {metric.better} is better" if column.judged else column.note,
        )
        for column in COLUMNS
    )


def columns(view: str, of: Sequence[Column]) -> list[Column]:
    """The columns of a view, in their order."""
    return [column for column in of if view in column.views]


def beside(row: ComparedRow) -> str:
    """The columns that a picture writes beside a row, in one line."""
    texts = [(column.in_pictures, column.text(row)) for column in COLUMNS if column.in_pictures]
    return ", ".join(template.format(text) for template, text in texts if text)
