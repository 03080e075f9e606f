"""Table 3 of Ji et al. (2024)."""

from __future__ import annotations

from flatsparse.experiments.recipes.imagenet import ON_IMAGENET, on_imagenet, settings_notes
from flatsparse.experiments.recipes.recipe import Cell, Published, Recipe, Scale, both
from flatsparse.experiments.recipes.setting import STAND_IN, STUDY

CHEX = "Hou et al. 2022 and their repository"
CHASE = "Yin et al. 2023 and their repository"
# network, fraction of channels removed, column, top-1. The repository gives 0.5 and 0.7 for ResNet-50; the others are ours.
BY_CHANNELS = (
    ("resnet34", 0.5, "ResNet-34, 2 GFLOPs", 73.5),
    ("resnet50", 0.25, "ResNet-50, 3 GFLOPs", 78.0),
    ("resnet50", 0.5, "ResNet-50, 2 GFLOPs", 77.4),
    ("resnet50", 0.7, "ResNet-50, 1 GFLOPs", 76.0),
)
# fraction of channels removed: top-1 of ResNet-50 at 80 and 90 %
BY_BOTH = {0.0: (75.87, 74.70), 0.3: (75.62, 74.35), 0.4: (75.27, 74.03)}


def cells(scale: Scale) -> tuple[Cell, ...]:
    table: list[Cell] = []
    for model, removed, column, top1 in BY_CHANNELS:
        run = on_imagenet(scale, "chex", None, model=model, channels=removed)
        table += both("CHEX", column, run, Published(top1, source=CHEX))
    for removed, numbers in BY_BOTH.items():
        for sparsity, top1 in zip((0.8, 0.9), numbers, strict=True):
            run = on_imagenet(scale, "chase", sparsity, channels=removed)
            row = f"Chase, {removed:.0%} of channels"
            table += both(row, f"ResNet-50 {sparsity:.0%}", run, Published(top1, source=CHASE))
    return tuple(table)


RECIPE = Recipe(
    "table3",
    "Channels removed while training: CHEX and Chase on ImageNet",
    "Ji et al. 2024, Table 3",
    cells,
    notes=(
        STAND_IN + " The net is ResNet-20 there.",
        STUDY,
        ON_IMAGENET,
        *settings_notes(["chex", "chase"]),
        "CHEX's budgets are printed in FLOPs, and its repository gives the fraction of channels for 2 and 1 GFLOPs of ResNet-50"
        " only: 0.25 for 3 GFLOPs, and 0.5 for ResNet-34, are our guess. Which channels go decides the FLOPs; pruned uniformly,"
        " ResNet-50 has 2.75, 1.64 and 0.92 GFLOPs (of multiply-adds) without 25, 50 and 70 % of them, ResNet-34 1.89.",
        "Chase works layer by layer at the scale of the paper, as its script for ImageNet, and in laptop over the whole net, as"
        " that for CIFAR.",
        "The entries with S²-SAM are unknown to us; the paper's text gives a mean gain of about 0.5. Its baseline of Chase on"
        " ResNet-34 is a run of its own, unknown too.",
    ),
    seeds={"smoke": 1, "laptop": 5, "paper": 3},
)
