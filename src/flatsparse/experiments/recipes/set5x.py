"""SET, trained five times as long, from the reviews."""

from __future__ import annotations

from flatsparse.experiments.recipes.imagenet import ON_IMAGENET, on_imagenet, settings_notes
from flatsparse.experiments.recipes.recipe import Cell, Recipe, Scale
from flatsparse.experiments.recipes.setting import REVIEW, STAND_IN, STUDY, reviewed

PRINTED = {0.8: (74.60, 75.43), 0.9: (72.43, 73.16)}


def cells(scale: Scale) -> tuple[Cell, ...]:
    return tuple(
        cell
        for sparsity, printed in PRINTED.items()
        for cell in reviewed(
            "SET 5×",
            f"{sparsity:.0%}",
            on_imagenet(scale, "set", sparsity, multiplier=5.0),
            printed,
        )
    )


RECIPE = Recipe(
    "set5x",
    "ResNet-50 on ImageNet, SET trained five times as long",
    REVIEW,
    cells,
    notes=(STAND_IN + " The net is ResNet-20, and 6 epochs become 30.", STUDY, ON_IMAGENET, *settings_notes(["set"])),
    seeds={"smoke": 1, "laptop": 5, "paper": 3},
)
