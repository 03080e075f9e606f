"""Learning-rate rewinding, from the reviews."""

from __future__ import annotations

from flatsparse.experiments.recipes.recipe import Cell, Recipe, Scale
from flatsparse.experiments.recipes.setting import LABELS, REVIEW, STAND_IN, STUDY, reviewed, run_at

PRINTED = {0.8: (94.68, 94.87), 0.9: (94.05, 94.39), 0.95: (93.82, 94.22)}


def cells(scale: Scale) -> tuple[Cell, ...]:
    return tuple(
        cell
        for sparsity, printed in PRINTED.items()
        for cell in reviewed(
            LABELS["lrr"],
            f"{sparsity:.0%}",
            run_at(scale, "lrr", sparsity),
            printed,
        )
    )


RECIPE = Recipe(
    "lrr",
    "ResNet-32 on CIFAR-10, learning-rate rewinding",
    REVIEW,
    cells,
    notes=(STAND_IN + " A round of it has 2 epochs there.", STUDY),
)
