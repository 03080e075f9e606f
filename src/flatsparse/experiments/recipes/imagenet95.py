"""95 % on ImageNet, from the reviews."""

from __future__ import annotations

from flatsparse.experiments.recipes.imagenet import ON_IMAGENET, on_imagenet, settings_notes
from flatsparse.experiments.recipes.recipe import Cell, Recipe, Scale
from flatsparse.experiments.recipes.setting import LABELS, REVIEW, STAND_IN, STUDY, reviewed

PRINTED = {"rigl": (69.02, 69.83), "mest": (69.95, 70.81)}


def cells(scale: Scale) -> tuple[Cell, ...]:
    return tuple(
        cell
        for method, printed in PRINTED.items()
        for cell in reviewed(LABELS[method], "95%", on_imagenet(scale, method, 0.95), printed)
    )


RECIPE = Recipe(
    "imagenet95",
    "ResNet-50 on ImageNet at 95 %",
    REVIEW,
    cells,
    notes=(STAND_IN + " The net is ResNet-20.", STUDY, ON_IMAGENET, *settings_notes(PRINTED)),
)
