"""Table A.1 of Ji et al. (2024)."""

from __future__ import annotations

from flatsparse.experiments.recipes.recipe import Cell, Published, Recipe, Scale, both
from flatsparse.experiments.recipes.setting import LABELS, STAND_IN, STUDY, run_at
from flatsparse.experiments.recipes.table1 import BEFORE, DATA, SPARSITIES

Numbers = tuple[float, ...] | None
PLAIN: dict[str, tuple[Numbers, Numbers]] = {
    "lth": ((93.51, 92.92, 92.34), (72.78, 71.44, 68.95)),
    "snip": ((93.63, 93.43, 92.05), (72.84, 71.83, 58.46)),
    "grasp": ((93.30, 93.04, 92.19), (71.95, 71.23, 68.90)),
    "set": ((92.46, 91.73, 89.18), (72.36, 69.81, 65.94)),
    "dsr": ((93.75, 93.86, 93.13), (72.31, 71.98, 70.70)),
    "rigl": (None, None),
    "mest": (None, None),
    "mest-ems": (None, None),
}


def cells(scale: Scale) -> tuple[Cell, ...]:
    table: list[Cell] = []
    for method, numbers in PLAIN.items():
        for (data, label), plain in zip(DATA.items(), numbers, strict=True):
            for place, sparsity in enumerate(SPARSITIES):
                printed = None if plain is None else Published(plain[place], source=BEFORE)
                run = run_at(scale, method, sparsity, data, model="vgg19")
                table += both(LABELS[method], f"{label} {sparsity:.0%}", run, printed)
    return tuple(table)


RECIPE = Recipe(
    "tableA1",
    "VGG-19 on CIFAR-10 and CIFAR-100, eight methods at 90, 95 and 98 %",
    "Ji et al. 2024, Table A.1",
    cells,
    notes=(
        STAND_IN + " Both data sets' columns are the same runs there, and those of table1.",
        STUDY,
        "The entries with S²-SAM, and those of RigL and MEST, are unknown to us.",
    ),
)
