"""SET, trained five times as long, from the reviews."""

from __future__ import annotations

from flatsparse.experiments.recipes.recipe import Cell, Published, Recipe, Scale, both
from flatsparse.experiments.recipes.setting import IMAGENET, ON_IMAGENET, STAND_IN, STUDY, run_at
from flatsparse.experiments.recipes.table1 import REVIEW

PRINTED = {0.8: (74.60, 75.43), 0.9: (72.43, 73.16)}


def cells(scale: Scale) -> tuple[Cell, ...]:
    return tuple(
        cell
        for sparsity, (plain, ours) in PRINTED.items()
        for cell in both(
            "SET 5×",
            f"{sparsity:.0%}",
            run_at(scale, "set", sparsity, "imagenet", model="resnet50", small="resnet20", multiplier=5.0),
            Published(plain, source=REVIEW),
            Published(ours, source=REVIEW),
            needs=IMAGENET if scale == "paper" else None,
        )
    )


RECIPE = Recipe(
    "set5x",
    "ResNet-50 on ImageNet, SET trained five times as long",
    "reviews of Ji et al. 2024",
    cells,
    notes=(STAND_IN + " The net is ResNet-20, and 6 epochs become 30.", STUDY, ON_IMAGENET),
    seeds={"smoke": 1, "laptop": 5, "paper": 3},
)
