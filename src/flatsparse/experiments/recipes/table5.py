"""Table 5 of Ji et al. (2024): corrupted images."""

from __future__ import annotations

from flatsparse.experiments.recipes.imagenet import ON_IMAGENET, on_imagenet, settings_notes
from flatsparse.experiments.recipes.on_corrupted import MADE_HERE, ON_CORRUPTED, accuracy_on_corrupted
from flatsparse.experiments.recipes.recipe import Cell, Recipe, Scale, both
from flatsparse.experiments.recipes.setting import LABELS, STAND_IN, STUDY

METHODS = ("grasp", "rigl", "mest")  # ours: those of the paper's rows are unknown


def cells(scale: Scale) -> tuple[Cell, ...]:
    return tuple(cell for method in METHODS for cell in both(LABELS[method], "80%", on_imagenet(scale, method, 0.8)))


RECIPE = Recipe(
    "table5",
    "Accuracy on corrupted images at 80 %",
    "Ji et al. 2024, Table 5",
    cells,
    notes=(
        STAND_IN + " The net is ResNet-20.",
        STUDY,
        ON_IMAGENET,
        *settings_notes(METHODS),
        MADE_HERE,
        "The entries, and the methods of the rows, are unknown to us; the paper's text says about 35 points below clean accuracy,"
        " and a mean gain of 3.23.",
    ),
    metric=ON_CORRUPTED,
    measure=accuracy_on_corrupted(),
)
