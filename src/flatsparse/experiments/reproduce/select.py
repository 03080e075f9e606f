"""The selection of a recipe's cells."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Sequence

from flatsparse.common.errors import InputError
from flatsparse.experiments.recipes.recipe import Cell, controls


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
            joined += [control for control in controls(cell) if (control.name, control.run) not in there]
    return joined
