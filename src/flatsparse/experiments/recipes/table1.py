"""Table 1 of Ji et al. (2024)."""

from __future__ import annotations

from flatsparse.experiments.recipes.recipe import Cell, Published, Recipe, Scale, both
from flatsparse.experiments.recipes.setting import LABELS, REVIEW, STAND_IN, STUDY, run_at

BEFORE = "from memory of the GraSP and MEST papers, which it quotes; check before use"
SPARSITIES = (0.9, 0.95, 0.98)
DATA = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
PLAIN: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "lth": ((92.31, 91.06, 88.78), (68.99, 65.02, 57.37)),
    "snip": ((92.59, 91.01, 87.51), (68.89, 65.22, 54.81)),
    "grasp": ((92.38, 91.39, 88.81), (69.24, 66.50, 58.43)),
    "set": ((92.30, 90.76, 88.29), (69.66, 67.41, 62.25)),
    "dsr": ((92.97, 91.61, 88.46), (69.63, 68.20, 61.24)),
    "rigl": ((93.07, 91.83, 89.00), (70.34, 68.22, 64.07)),
    "mest": ((92.56, 91.15, 89.22), (70.44, 68.43, 64.59)),
    "mest-ems": ((93.27, 92.44, 90.51), (71.30, 70.36, 67.16)),
}
OURS = {("lth", "cifar10", 0.9): 92.58} | {
    ("mest", "cifar10", s): v for s, v in zip(SPARSITIES, (93.43, 91.58, 91.22), strict=True)
}


def cells(scale: Scale) -> tuple[Cell, ...]:
    table: list[Cell] = []
    for method, numbers in PLAIN.items():
        for (data, label), plain in zip(DATA.items(), numbers, strict=True):
            for sparsity, value in zip(SPARSITIES, plain, strict=True):
                s2sam = OURS.get((method, data, sparsity))
                table += both(
                    LABELS[method],
                    f"{label} {sparsity:.0%}",
                    run_at(scale, method, sparsity, data),
                    Published(value, source=BEFORE if s2sam is None else REVIEW),  # those few are in both
                    None if s2sam is None else Published(s2sam, source=REVIEW),
                )
    return tuple(table)


RECIPE = Recipe(
    "table1",
    "ResNet-32 on CIFAR-10 and CIFAR-100, eight methods at 90, 95 and 98 %",
    "Ji et al. 2024, Table 1",
    cells,
    notes=(
        STAND_IN + " Both data sets' columns are the same runs there.",
        STUDY,
        "Most entries with S²-SAM are unknown to us; the paper's text gives mean gains at 98 % of 0.77 (CIFAR-10) and 1.12"
        " (CIFAR-100).",
    ),
)
