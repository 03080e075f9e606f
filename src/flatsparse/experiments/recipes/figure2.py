"""Figure 2 of Ji et al. (2024): the mechanism, on a loss of two weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from flatsparse.experiments.labels import label
from flatsparse.experiments.landscape.mechanism import WRAPPERS, figure2, two_valleys, walk
from flatsparse.experiments.metric import Metric
from flatsparse.experiments.plotting import save
from flatsparse.experiments.recipes.recipe import Measured, Reading, Recipe, Work

NAMES = {"wide": 1.0, "narrow": -1.0}  # where the valleys are, in the first weight


def measured(runs: object, work: Work) -> Measured:
    """Draw the steps, and read off the loss at the last and how far it is from either valley."""
    last = {sharpness: torch.from_numpy(walk(sharpness).weights[-1]) for sharpness in WRAPPERS}
    readings = [Reading("last step", "loss", name, (float(two_valleys(point)),)) for name, point in last.items()]
    sentences = []
    for valley, at in NAMES.items():
        away = {name: float((point - torch.tensor([at, 0.0])).norm()) for name, point in last.items()}
        readings += [
            Reading("last step", f"distance to the {valley} valley", name, (far,)) for name, far in away.items()
        ]
        sentences.append(nearest(valley, away))
    picture = work.out / "mechanism.png"
    save(figure2(), picture)
    return Measured(readings=readings, pictures=[picture], said=sentences)


def nearest(valley: str, away: Mapping[str, float]) -> str:
    """Return a sentence that says which optimizer ends nearest a valley.

    >>> nearest("wide", {"none": 1.5, "sam": 0.5})
    'SAM ends nearest the wide valley, 0.50 away; plain 1.50.'
    """
    (first, least), *others = sorted(away.items(), key=lambda other: other[1])
    rest = ", ".join(f"{label(name)} {far:.2f}" for name, far in others)
    return f"{label(first)} ends nearest the {valley} valley, {least:.2f} away; {rest}."


RECIPE = Recipe(
    "figure2",
    "The steps of SGD, SAM and S²-SAM on a loss with a narrow and a wide valley",
    "Ji et al. 2024, Figure 2",
    notes=("The loss is ours: the paper draws a sketch. The same at every scale and with any --jobs.",),
    metric=Metric("loss, or distance", "lower"),
    measure=measured,
)
