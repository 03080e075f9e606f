"""The sparsity sweep of the reviews."""

from __future__ import annotations

from flatsparse.experiments.recipes.recipe import Cell, Recipe, Scale
from flatsparse.experiments.recipes.setting import REVIEW, STAND_IN, STUDY, reviewed, run_at

PRINTED = {
    0.0: (94.58, 94.99),
    0.2: (94.35, 94.67),
    0.4: (93.92, 94.38),
    0.6: (93.58, 94.11),
    0.8: (93.23, 93.88),
    0.9: (92.56, 93.43),
    0.95: (91.15, 91.58),
    0.98: (89.22, 91.22),
}


def cells(scale: Scale) -> tuple[Cell, ...]:
    return tuple(
        cell
        for sparsity, printed in PRINTED.items()
        for cell in reviewed(
            "MEST(EM)",
            f"{sparsity:.0%}" if sparsity else "dense",
            run_at(scale, "mest" if sparsity else "dense", sparsity),
            printed,
        )
    )


RECIPE = Recipe(
    "sweep",
    "ResNet-32 on CIFAR-10, MEST(EM) from dense to 98 %",
    REVIEW,
    cells,
    notes=(STAND_IN, STUDY, "The printed gain at 95 % (0.43) breaks the trend that the authors see."),
)
