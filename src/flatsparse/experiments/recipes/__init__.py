"""Recipes: one file per table or figure. A new one is a file here with ``RECIPE``, or any file given by its path.

A file may hold a family of them, in ``RECIPES``.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Sequence
from pathlib import Path

from flatsparse.common.errors import InputError, shown, unknown
from flatsparse.common.plugins import errors_of, executed
from flatsparse.experiments.recipes.check import cell_error, recipe_error
from flatsparse.experiments.recipes.recipe import Cell, Measured, Recipe, Scale, Work


def recipes() -> dict[str, Recipe]:
    """All recipes of this package by name: tables, then figures, then the others."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    known = [module.RECIPE for module in modules if hasattr(module, "RECIPE")]
    known += [recipe for module in modules for recipe in getattr(module, "RECIPES", ())]
    return {recipe.name: recipe for recipe in sorted(known, key=_place)}


def _place(recipe: Recipe) -> tuple[int, str]:
    kind = re.match(r"table|figure", recipe.name)
    return ({"table": 0, "figure": 1}[kind[0]] if kind else 2), recipe.name


def load(name: str) -> Recipe:
    """A recipe by name, or of a Python file that has ``RECIPE``; the file is executed.

    Raises: InputError for an unknown name, and a file without a recipe or with one whose name cannot be used. So do the
    ``cells`` of a recipe from a file, when they fail, and its ``measure``.
    """
    if not name.endswith(".py"):
        known = recipes()
        if name not in known:
            raise unknown("recipe", name, known)
        return known[name]
    file = Path(name)
    if not file.is_file():
        raise InputError(f"no file '{file}' for a recipe: give the path to a Python file that has RECIPE")
    recipe = getattr(executed(file, "recipe"), "RECIPE", None)
    if not isinstance(recipe, Recipe):
        raise InputError(f"'{file}' has no recipe: give RECIPE = Recipe(…)")
    if (wrong := recipe_error(recipe)) is not None:
        raise InputError(f"'{file}' has a recipe that cannot be used: {wrong}")
    if recipe.name in recipes() or not re.fullmatch(r"[\w.-]+", recipe.name):  # it names the table's files
        raise InputError(
            f"the name '{recipe.name}' in '{file}' cannot be used: give one of its own, of letters, digits, . - _"
        )

    def cells(scale: Scale) -> list[Cell]:
        with errors_of(file):
            listed = list(recipe.cells(scale))
        wrong = "it has none" if not listed else next(filter(None, map(cell_error, listed)), None)
        if wrong is not None:
            raise InputError(
                f"cells of recipe '{recipe.name}' in '{file}' gave {shown(listed, 80)} ({wrong}): give Cells, at least one"
            )
        return listed

    def measure(runs: Sequence[tuple[Cell, Sequence[Path]]], work: Work) -> Measured:
        assert recipe.measure is not None  # or this is not asked
        with errors_of(file):
            return recipe.measure(runs, work)

    return dataclasses.replace(recipe, cells=cells, measure=recipe.measure and measure)
