"""Wrong labels: where sharpness-aware training is known to pay most."""

from __future__ import annotations

from flatsparse.experiments.recipes.recipe import Cell, Recipe, Scale, both
from flatsparse.experiments.recipes.setting import LABELS, OUR_STUDY, SMALL_NET, STAND_IN, run_at
from flatsparse.experiments.run.config import change


def cells(scale: Scale) -> tuple[Cell, ...]:
    table: list[Cell] = []
    for method in ("rigl", "mest"):
        for noise in (0.0, 0.2, 0.4):
            run = run_at(scale, method, 0.9, laptop=SMALL_NET, label_noise=noise)
            place = LABELS[method], f"{noise:.0%} wrong labels"
            table += both(*place, run)
            table.append(Cell(*place, change(run, sharpness="sam")))
    return tuple(table)


RECIPE = Recipe(
    "noise",
    "Wrong training labels at 90 %: none, a fifth, two fifths",
    "ours, because SAM is known to pay most there (Foret et al. 2021, sec. 3.3)",
    cells,
    notes=(STAND_IN, OUR_STUDY),
)
