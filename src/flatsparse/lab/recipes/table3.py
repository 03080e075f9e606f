"""Table 3 of Ji et al. (2024)."""

from __future__ import annotations

from flatsparse.lab.recipes.recipe import Cell, Published, Recipe, Scale, both
from flatsparse.lab.recipes.setting import IMAGENET, ON_IMAGENET, STAND_IN, STUDY, run_at

CHEX = "Hou et al. 2022 and their repository"
CHASE = "Yin et al. 2023 and their repository"
# network, fraction of channels removed, column, top-1. The repository gives 0.5 and 0.7 for ResNet-50; the 0.3 are ours.
BY_CHANNELS = (
    ("resnet34", 0.3, "ResNet-34, 2 GFLOPs", 73.5),
    ("resnet50", 0.3, "ResNet-50, 3 GFLOPs", 78.0),
    ("resnet50", 0.5, "ResNet-50, 2 GFLOPs", 77.4),
    ("resnet50", 0.7, "ResNet-50, 1 GFLOPs", 76.0),
)
# fraction of channels removed: top-1 of ResNet-50 at 80 and 90 %
BY_BOTH = {0.0: (75.87, 74.70), 0.3: (75.62, 74.35), 0.4: (75.27, 74.03)}


def cells(scale: Scale) -> tuple[Cell, ...]:
    needs = IMAGENET if scale == "paper" else None
    found: list[Cell] = []
    for model, removed, column, top1 in BY_CHANNELS:
        run = run_at(scale, "chex", None, "imagenet", model=model, small="resnet20", channels=removed)
        found += both("CHEX", column, run, Published(top1, source=CHEX), needs=needs)
    for removed, numbers in BY_BOTH.items():
        for sparsity, top1 in zip((0.8, 0.9), numbers, strict=True):
            run = run_at(scale, "chase", sparsity, "imagenet", model="resnet50", small="resnet20", channels=removed)
            row = f"Chase, {removed:.0%} of channels"
            found += both(row, f"ResNet-50 {sparsity:.0%}", run, Published(top1, source=CHASE), needs=needs)
    return tuple(found)


RECIPE = Recipe(
    "table3",
    "Channels removed while training: CHEX and Chase on ImageNet",
    "Ji et al. 2024, Table 3",
    cells,
    notes=(
        STAND_IN + " The net is ResNet-20.",
        STUDY,
        ON_IMAGENET,
        "CHEX's budgets are printed in FLOPs: that 3 GFLOPs, and ResNet-34, go with 30 % of channels removed is our guess.",
        "The entries with S²-SAM are unknown to us; the paper's text gives a mean gain of about 0.5. Its baseline of Chase on"
        " ResNet-34 is a run of its own, unknown too.",
    ),
    seeds={"smoke": 1, "laptop": 5, "paper": 3},
)
