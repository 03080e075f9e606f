"""Figure 1 of Ji et al. (2024): sparser, rougher."""

from __future__ import annotations

from flatsparse.experiments.landscape import pictures
from flatsparse.experiments.recipes.recipe import Cell, Recipe, Scale
from flatsparse.experiments.recipes.setting import LABELS, STAND_IN, STUDY, run_at
from flatsparse.experiments.recipes.surfaces import NOTE, ROUGHNESS, surfaces


def cells(scale: Scale) -> tuple[Cell, ...]:
    return tuple(
        Cell(LABELS[method], f"{sparsity:.0%}", run_at(scale, method, sparsity))
        for method in ("grasp", "mest")
        for sparsity in (0.8, 0.9, 0.95, 0.98)
    )


RECIPE = Recipe(
    "figure1",
    "Loss surfaces get rougher with sparsity: GraSP and MEST(EM)",
    "Ji et al. 2024, Figure 1",
    cells,
    notes=(STAND_IN, STUDY, NOTE),
    metric=ROUGHNESS,
    seeds={"smoke": 1, "laptop": 3, "paper": 3},
    measure=surfaces(pictures.figure1, lambda cell: (cell.row, cell.run.pruning.sparsity)),
)
