"""Learning-rate rewinding, from the reviews."""

from __future__ import annotations

from flatsparse.experiments.recipes.recipe import Cell, Published, Recipe, Scale, both
from flatsparse.experiments.recipes.setting import LABELS, STAND_IN, STUDY, run_at
from flatsparse.experiments.recipes.table1 import REVIEW

PRINTED = {0.8: (94.68, 94.87), 0.9: (94.05, 94.39), 0.95: (93.82, 94.22)}


def cells(scale: Scale) -> tuple[Cell, ...]:
    return tuple(
        cell
        for sparsity, (plain, ours) in PRINTED.items()
        for cell in both(
            LABELS["lrr"],
            f"{sparsity:.0%}",
            run_at(scale, "lrr", sparsity),
            Published(plain, source=REVIEW),
            Published(ours, source=REVIEW),
        )
    )


RECIPE = Recipe(
    "lrr",
    "ResNet-32 on CIFAR-10, learning-rate rewinding",
    "reviews of Ji et al. 2024",
    cells,
    notes=(STAND_IN + " A round of it has 2 epochs there.", STUDY),
)
