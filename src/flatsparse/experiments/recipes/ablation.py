"""The parts of S²-SAM taken apart, and plain regularisers as rivals."""

from __future__ import annotations

from typing import Any

from flatsparse.experiments.recipes.recipe import Cell, Recipe, Scale
from flatsparse.experiments.recipes.setting import OUR_STUDY, SMALL_NET, STAND_IN, run_at
from flatsparse.experiments.run.config import change
from flatsparse.experiments.run.sharpness import SHARPNESS

COLUMN = "RigL 90%"
# row: what differs from S²-SAM, and, where plain training must differ too, what differs from it
PARTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "S²-SAM as it is": ({}, {}),
    "perturbation of all weights": ({"mask_perturbation": False}, {}),
    **{f"ρ {rho:g}": ({"rho": rho}, {}) for rho in (0.01, 0.02, 0.1, 0.2, 0.5)},
    **{f"ρ falls, {name}": ({"rho_schedule": name}, {}) for name in ("inverse-sqrt", "linear", "cosine")},
    "ρ by weight": ({"adaptive": True, "rho": 0.5}, {}),
    "batch norm at the end": ({"batch_norm": "final"}, {"batch_norm": "final"}),
    "no momentum": ({"momentum": 0.0}, {"momentum": 0.0}),
    "Nesterov's momentum": ({"nesterov": True}, {"nesterov": True}),
}
RIVALS: dict[str, dict[str, Any]] = {
    "weight decay 5e-4": {"weight_decay": 5e-4},
    "weight decay 2e-3": {"weight_decay": 2e-3},
    "label smoothing 0.1": {"label_smoothing": 0.1},
}


def cells(scale: Scale) -> tuple[Cell, ...]:
    plain = run_at(scale, "rigl", 0.9, laptop=SMALL_NET)
    s2sam = change(plain, sharpness="s2sam")
    table: list[Cell] = []
    for row, (differs, alike) in PARTS.items():
        table.append(Cell(row, COLUMN, change(plain, **alike)))
        table.append(Cell(row, COLUMN, change(s2sam, **differs)))
    table.append(Cell("direction", COLUMN, plain))
    others = (name for name in SHARPNESS if name not in ("none", "s2sam"))
    table += [Cell("direction", COLUMN, change(plain, sharpness=name)) for name in others]
    table.append(Cell("rivals", COLUMN, plain))
    for name, differs in RIVALS.items():
        table.append(Cell("rivals", COLUMN, change(plain, **differs), control=name))
        table.append(Cell("rivals", COLUMN, change(s2sam, **differs), control=f"{name}, with S²-SAM"))
    return tuple(table)


RECIPE = Recipe(
    "ablation",
    "S²-SAM's parts, other directions, and plain regularisers as rivals",
    "ours",
    cells,
    notes=(
        STAND_IN,
        OUR_STUDY,
        "Each row has its own plain run where the part changes that too. A direction other than S²-SAM's, and a rival, is no"
        " claim of the paper and gets no verdict.",
    ),
)
