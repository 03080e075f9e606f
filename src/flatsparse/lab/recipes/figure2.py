"""Figure 2 of Ji et al. (2024): the mechanism, on a loss of two weights."""

from __future__ import annotations

import torch

from flatsparse.lab.figures import save
from flatsparse.lab.landscape.mechanism import WRAPPERS, figure2, two_valleys, walk
from flatsparse.lab.recipes.recipe import Measured, Metric, Reading, Recipe, Work

NAMES = {"wide": 1.0, "narrow": -1.0}  # where the valleys are, in the first weight


def measured(runs: object, work: Work) -> Measured:
    """Draw the steps, and read off the loss at the last and how far it is from either valley."""
    last = {sharpness: torch.from_numpy(walk(sharpness).weights[-1]) for sharpness in WRAPPERS}
    readings = [Reading("last step", "loss", name, (float(two_valleys(place)),)) for name, place in last.items()]
    for valley, at in NAMES.items():
        for name, place in last.items():
            away = float((place - torch.tensor([at, 0.0])).norm())
            readings.append(Reading("last step", f"distance to the {valley} valley", name, (away,)))
    picture = work.out / "mechanism.png"
    save(figure2(), picture)
    return Measured(readings=readings, pictures=[picture])


RECIPE = Recipe(
    "figure2",
    "The steps of SGD, SAM and S²-SAM on a loss with a narrow and a wide valley",
    "Ji et al. 2024, Figure 2",
    notes=("The loss is ours: the paper draws a sketch. The same at every scale.",),
    metric=Metric("loss, or distance", "lower"),
    measure=measured,
)
