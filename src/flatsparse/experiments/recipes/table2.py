"""Table 2 of Ji et al. (2024)."""

from __future__ import annotations

from typing import Any

from flatsparse.experiments.recipes.imagenet import ON_IMAGENET, on_imagenet, settings_notes
from flatsparse.experiments.recipes.recipe import Cell, Published, Recipe, Scale, both
from flatsparse.experiments.recipes.setting import STAND_IN, STUDY

RIGL = "Evci et al. 2020 and their repository"
CHASE = "as listed with the code of Chase (Yin et al. 2023)"
MEMORY = "from memory of their papers; check before use"
SPARSITIES = (0.8, 0.9)
# row: method, what differs from it, top-1 at 80 and 90 %, training FLOPs as a share of dense, source
ROWS: dict[str, tuple[str, dict[str, Any], tuple[float, float] | None, tuple[float, float] | None, str]] = {
    "SNIP": ("snip", {}, (69.7, 62.0), None, MEMORY),
    "GraSP": ("grasp", {}, (72.1, 68.1), None, MEMORY),
    "SET": ("set", {}, (72.9, 69.6), (0.23, 0.10), CHASE),
    "DSR": ("dsr", {}, (73.3, 71.6), (0.40, 0.30), CHASE),
    "SNFS": ("snfs", {}, (75.2, 72.9), (0.61, 0.50), CHASE),
    "RigL uniform": ("rigl", {"distribution": "uniform", "layers": "rigl"}, (74.60, 72.02), None, RIGL),
    "RigL ERK": ("rigl", {"distribution": "erk"}, (75.12, 73.07), (0.42, 0.25), RIGL),
    "RigL uniform 5×": (
        "rigl",
        {"distribution": "uniform", "layers": "rigl", "multiplier": 5.0},
        (76.71, 75.73),
        (1.14, 0.66),
        RIGL,
    ),
    "RigL ERK 5×": ("rigl", {"distribution": "erk", "multiplier": 5.0}, (77.17, 76.42), (2.09, 1.23), RIGL),
    "MEST(EM) 0.67×": (
        "mest",
        {"distribution": "uniform", "multiplier": 2 / 3},
        (75.39, 72.58),
        (0.23, 0.12),
        CHASE + ", whose FLOPs are those of EM at this length",
    ),
    "MEST(EM)": ("mest", {"distribution": "uniform"}, None, None, ""),
    "MEST(EM&S) 1.7×": ("mest-ems", {"distribution": "uniform", "multiplier": 5 / 3}, None, None, ""),
}


def cells(scale: Scale) -> tuple[Cell, ...]:
    table: list[Cell] = []
    for row, (method, differs, top1, flops, source) in ROWS.items():
        for place, sparsity in enumerate(SPARSITIES):
            plain = None if top1 is None else Published(top1[place], source=source)
            if plain is not None and flops is not None:
                plain = Published(plain.value, flops=flops[place], source=source)
            run = on_imagenet(scale, method, sparsity, **differs)
            table += both(row, f"{sparsity:.0%}", run, plain)
    return tuple(table)


RECIPE = Recipe(
    "table2",
    "ResNet-50 on ImageNet at 80 and 90 %, uniform and ERK, longer training",
    "Ji et al. 2024, Table 2",
    cells,
    notes=(
        STAND_IN + " The net is ResNet-20 there.",
        STUDY,
        ON_IMAGENET,
        *settings_notes(list(dict.fromkeys(method for method, *_ in ROWS.values()))),
        "The entries with S²-SAM, and MEST's at 1× and 1.7×, are unknown to us. FLOPs are of training, as a share of one"
        " dense training of ordinary length.",
    ),
    seeds={"smoke": 1, "laptop": 5, "paper": 3},
)
