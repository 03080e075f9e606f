"""95 % on ImageNet, from the reviews."""

from __future__ import annotations

from flatsparse.experiments.recipes.recipe import Cell, Published, Recipe, Scale, both
from flatsparse.experiments.recipes.setting import IMAGENET, LABELS, ON_IMAGENET, STAND_IN, STUDY, run_at
from flatsparse.experiments.recipes.table1 import REVIEW

PRINTED = {"rigl": (69.02, 69.83), "mest": (69.95, 70.81)}


def cells(scale: Scale) -> tuple[Cell, ...]:
    return tuple(
        cell
        for method, (plain, ours) in PRINTED.items()
        for cell in both(
            LABELS[method],
            "95%",
            run_at(scale, method, 0.95, "imagenet", model="resnet50", small="resnet20"),
            Published(plain, source=REVIEW),
            Published(ours, source=REVIEW),
            needs=IMAGENET if scale == "paper" else None,
        )
    )


RECIPE = Recipe(
    "imagenet95",
    "ResNet-50 on ImageNet at 95 %",
    "reviews of Ji et al. 2024",
    cells,
    notes=(STAND_IN + " The net is ResNet-20.", STUDY, ON_IMAGENET),
)
