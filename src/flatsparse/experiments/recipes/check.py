"""Checks of a recipe from a user's file: each field is of its kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flatsparse.common.schema import Schema, form_of, schema_error
from flatsparse.experiments.metric import Metric
from flatsparse.experiments.recipes.recipe import Cell, Published, Recipe
from flatsparse.experiments.run.config import RunConfig, as_json, kinds_of_settings

RECIPE_FORM: dict[str, Schema] = {
    **dict.fromkeys(("name", "title", "source"), str),
    "notes": [str],
    "seeds": {str: int},
    "first_seed": int,
}
CELL_FORM: dict[str, Schema] = {
    **dict.fromkeys(("row", "column"), str),
    **dict.fromkeys(("control", "needs"), (str, None)),
}
PUBLISHED_FORM: dict[str, Schema] = {"value": float, "source": str, **dict.fromkeys(("std", "flops"), (float, None))}


def recipe_error(recipe: Recipe) -> str | None:
    """Return which field of a recipe is of the wrong kind, if any."""
    if (wrong := schema_error(_fields(recipe, RECIPE_FORM), RECIPE_FORM, "RECIPE")) is not None:
        return wrong
    if not callable(recipe.cells) or not (recipe.measure is None or callable(recipe.measure)):
        return "cells or measure is no function"
    return None if isinstance(recipe.metric, Metric) else "metric is no Metric"


def cell_error(cell: Any) -> str | None:
    """Return what of a cell is of the wrong kind, if anything."""
    if not isinstance(cell, Cell):
        return "it is no Cell"
    if (wrong := schema_error(_fields(cell, CELL_FORM), CELL_FORM, "the cell")) is not None:
        return wrong
    if cell.published is not None:
        if not isinstance(cell.published, Published):
            return "published is no Published"
        if (wrong := schema_error(_fields(cell.published, PUBLISHED_FORM), PUBLISHED_FORM, "published")) is not None:
            return wrong
    if not isinstance(cell.run, RunConfig):
        return "run is no RunConfig"
    forms = {name: form_of(kind) for name, kind in kinds_of_settings(RunConfig).items()}
    return schema_error(_plain(as_json(cell.run)), forms, "run")


def _fields(one: Any, names: Mapping[str, Any]) -> dict[str, Any]:
    return _plain({name: getattr(one, name) for name in names})


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as JSON has them: lists for tuples, dicts for other mappings."""
    return {
        name: list(v) if isinstance(v, tuple) else dict(v) if isinstance(v, Mapping) else v
        for name, v in values.items()
    }
