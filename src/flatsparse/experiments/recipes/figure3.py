"""Figure 3 of Ji et al. (2024): with S²-SAM, smoother."""

from __future__ import annotations

from flatsparse.experiments.landscape import pictures
from flatsparse.experiments.recipes.recipe import Cell, Recipe, Scale, both
from flatsparse.experiments.recipes.setting import LABELS, STAND_IN, STUDY, run_at
from flatsparse.experiments.recipes.surfaces import NOTE, ROUGHNESS, surfaces


def cells(scale: Scale) -> tuple[Cell, ...]:
    return tuple(
        cell
        for method in ("snip", "grasp", "mest")
        for sparsity in (0.9, 0.95, 0.98)
        for cell in both(LABELS[method], f"{sparsity:.0%}", run_at(scale, method, sparsity))
    )


RECIPE = Recipe(
    "figure3",
    "Loss surfaces with and without S²-SAM: SNIP, GraSP and MEST(EM)",
    "Ji et al. 2024, Figure 3",
    cells,
    notes=(STAND_IN, STUDY, NOTE, "The claim here is that S²-SAM lowers Ra."),
    metric=ROUGHNESS,
    measure=surfaces(pictures.figure3, lambda cell: (cell.row, cell.run.sharpness, cell.run.pruning.sparsity)),
)
