"""The selection of a recipe's cells."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import re
from collections.abc import Sequence

from flatsparse.common.errors import InputError, check_count
from flatsparse.experiments.recipes.recipe import Cell, Recipe, Scale
from flatsparse.experiments.recipes.recipe import controls as controls_of
from flatsparse.experiments.run.config import RunConfig, change


def cells_of(recipe: Recipe, scale: Scale, *, controls: bool, at_once: int | None) -> list[Cell]:
    """Return the cells of a recipe.

    Args:
        controls: with the controls of those with S²-SAM.
        at_once: the most samples that are computed at once: larger batches are in equal parts.
    """
    cells = list(recipe.cells(scale))
    if controls:
        cells = with_controls(cells)
    if at_once is None:
        return cells
    check_count("--at-once", at_once)
    return [dataclasses.replace(cell, run=_in_parts(cell.run, at_once)) for cell in cells]


def _in_parts(run: RunConfig, at_once: int) -> RunConfig:
    """Return a run with its batches in the fewest equal parts that are no larger."""
    size = run.optim.batch_size
    parts = next(n for n in range(1, size + 1) if size % n == 0 and size // n <= at_once)
    return change(run, accumulate=parts) if parts > 1 else run


def selected(cells: Sequence[Cell], only: str | None) -> list[Cell]:
    """Return the cells whose "row column" matches a pattern: a shell pattern of the whole, or a regular expression found in it.

    Raises: InputError for a pattern that matches none, with the nearest there are.
    """
    if only is None:
        return list(cells)
    if not cells:
        raise InputError(f"--only '{only}' chooses among runs, and this is measured without any: leave it out")
    matching = [cell for cell in cells if matches(cell.name, only)]
    if not matching:
        names = list(dict.fromkeys(cell.name for cell in cells))
        plain = {name.lower(): name for name in names}
        near = [plain[n] for n in difflib.get_close_matches(only.lower().strip("*^$"), plain, n=5, cutoff=0.3)]
        raise InputError(
            f"--only '{only}' meets none of {len(names)} places: near it are {', '.join(near or names[:5])}"
        )
    return matching


def matches(name: str, pattern: str | None) -> bool:
    """Return if a "row column" is among those that ``--only`` asks for."""
    if pattern is None or fnmatch.fnmatch(name.lower(), pattern.lower()) or pattern.lower() in name.lower():
        return True
    try:
        return re.search(pattern, name, re.IGNORECASE) is not None
    except re.error:
        return False


def with_controls(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells with the controls of every S²-SAM cell after it, less those that the table itself has."""
    joined = []
    there = {(cell.name, cell.run) for cell in cells}
    for cell in cells:
        joined.append(cell)
        if cell.run.sharpness == "s2sam" and cell.control is None:
            joined += [control for control in controls_of(cell) if (control.name, control.run) not in there]
    return joined
