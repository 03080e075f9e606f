"""The parts of a recipe: cells to run, the numbers that were printed for them, and measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from flatsparse.experiments.metric import ACCURACY, Metric
from flatsparse.experiments.run.config import RunConfig, change
from flatsparse.experiments.terminal import Console

Scale = Literal["smoke", "laptop", "paper"]
SCALES: dict[Scale, str] = {
    "smoke": "every cell in seconds on embedded data: shows that all works, its figures mean little",
    "laptop": "a small study on two cores: CIFAR-10 (or 100), each row's own network, a short schedule",
    "paper": "the published setting, for GPUs",
}


TUNING_SEEDS = 1000  # seeds of the choice of ρ start here, so that none of them is compared


@dataclass(frozen=True)
class Published:
    """A number that was printed somewhere; a cell without one is unknown to us. ``flops`` of training are a share of dense."""

    value: float
    std: float | None = None
    source: str = ""
    flops: float | None = None


@dataclass(frozen=True)
class Cell:
    """One configuration of a table.

    Attributes:
        row, column: its place. Cells of one place are a group: those with a sharpness, and the controls, are compared with
            the one without, seed by seed.
        run: what to train; its seed is replaced by each of the recipe's.
        published: what was printed here.
        control: as what it joins its group as a control; None for a cell of the table itself.
        needs: missing requirements of the run; such a cell is reported, not run.
    """

    row: str
    column: str
    run: RunConfig
    published: Published | None = None
    control: str | None = None
    needs: str | None = None

    @property
    def name(self) -> str:
        return f"{self.row} {self.column}"

    @property
    def label(self) -> str:
        """The name of the cell within its group."""
        return self.control or self.run.sharpness


@dataclass(frozen=True)
class Work:
    """The folder and the resources of a recipe's own measurements.

    Attributes:
        scale: at which it is reproduced.
        out: a folder of its own, for pictures and what need not be measured again.
        data_dir, device, jobs: as for a run, and how many processes.
    """

    scale: Scale
    out: Path
    data_dir: Path | None
    device: str
    jobs: int | None
    console: Console


@dataclass(frozen=True)
class Reading:
    """Values, such as of several rounds, at a place of a table that no run stands for."""

    row: str
    column: str
    sharpness: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Measured:
    """The measurements of a recipe: a value for each run's folder, or readings; files of pictures, and sentences."""

    values: Mapping[Path, float] = field(default_factory=dict)
    readings: Sequence[Reading] = ()
    pictures: Sequence[Path] = ()
    said: Sequence[str] = ()


@dataclass(frozen=True)
class Recipe:
    """A table or figure: what it is, the cells that answer it, and what was printed.

    Attributes:
        name: by which ``flatsparse reproduce`` knows it.
        title, source: what it shows, and where it was printed (or that it is ours).
        cells: those of a scale; none for what is measured without runs.
        notes: what must be known to read it, stand-ins above all.
        seeds: how many, by scale.
        first_seed: the first of them; what is chosen is chosen on seeds that nothing else has.
        measure: measures the finished runs. By default their test accuracy is reported.
    """

    name: str
    title: str
    source: str
    cells: Callable[[Scale], Sequence[Cell]] = lambda scale: ()
    notes: tuple[str, ...] = ()
    metric: Metric = ACCURACY
    seeds: Mapping[Scale, int] = field(default_factory=lambda: {"smoke": 2, "laptop": 5, "paper": 3})
    first_seed: int = 0
    measure: Callable[[Sequence[tuple[Cell, Sequence[Path]]], Work], Measured] | None = None


def both(
    row: str,
    column: str,
    run: RunConfig,
    plain: Published | None = None,
    s2sam: Published | None = None,
    *,
    needs: str | None = None,
) -> tuple[Cell, Cell]:
    """A cell without sharpness awareness, and the same with S²-SAM."""
    return (
        Cell(row, column, change(run, sharpness="none"), plain, needs=needs),
        Cell(row, column, change(run, sharpness="s2sam"), s2sam, needs=needs),
    )


def controls(cell: Cell) -> tuple[Cell, ...]:
    """Return the controls of a cell with S²-SAM, which show what its gain is owed to.

    SAM; a random direction of the same norm; plain training at SAM's cost, which is twice as long; and the weight decays of
    the released scripts, 1e-4 in that of SGD and 5e-4 in that of SAM, for both.
    """
    other = 5e-4 if cell.run.optim.weight_decay == 1e-4 else 1e-4
    sharp, plain = cell.run, change(cell.run, sharpness="none")
    runs = {
        "sam": change(sharp, sharpness="sam"),
        "random direction": change(sharp, sharpness="random"),
        "plain, twice as long": change(plain, multiplier=2 * plain.schedule.multiplier),
        f"plain, weight decay {other:g}": change(plain, weight_decay=other),
        f"s2sam, weight decay {other:g}": change(sharp, weight_decay=other),
    }
    return tuple(Cell(cell.row, cell.column, run, control=name, needs=cell.needs) for name, run in runs.items())
