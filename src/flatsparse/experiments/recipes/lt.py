"""Lottery tickets by what is pruned a round, from the reviews."""

from __future__ import annotations

from flatsparse.experiments.recipes.recipe import Cell, Recipe, Scale
from flatsparse.experiments.recipes.setting import REVIEW, STAND_IN, STUDY, reviewed, run_at

# share pruned a round: rounds, and what was printed
PRINTED = {0.2: (11, 92.31, 92.58), 0.3: (6, 91.71, 92.32), 0.4: (4, 90.73, 91.44)}


def cells(scale: Scale) -> tuple[Cell, ...]:
    return tuple(
        cell
        for share, (rounds, plain, s2sam) in PRINTED.items()
        for cell in reviewed(
            f"LT, {share:.0%} a round",
            f"{rounds} rounds",
            run_at(scale, "lth", 1 - (1 - share) ** rounds, drop_fraction=share),
            (plain, s2sam),
        )
    )


RECIPE = Recipe(
    "lt",
    "ResNet-32 on CIFAR-10, lottery tickets with 20, 30 and 40 % pruned a round",
    REVIEW,
    cells,
    notes=(
        STAND_IN + " A round of it has 2 epochs there.",
        STUDY,
        'All three are called "90 %" where they were printed; these numbers of rounds give 91.4, 88.2 and 87.0 %.',
    ),
)
