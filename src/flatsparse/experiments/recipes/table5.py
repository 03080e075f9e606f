"""Table 5 of Ji et al. (2024): corrupted images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flatsparse.common.json_files import read_json, write_json
from flatsparse.experiments.metric import Metric
from flatsparse.experiments.recipes.imagenet import ON_IMAGENET, on_imagenet, settings_notes
from flatsparse.experiments.recipes.recipe import Cell, Measured, Recipe, Scale, Work, both
from flatsparse.experiments.recipes.setting import LABELS, STAND_IN, STUDY
from flatsparse.experiments.robustness import robustness
from flatsparse.experiments.run.load import load_run

METHODS = ("grasp", "rigl", "mest")  # ours: those of the paper's rows are unknown


def cells(scale: Scale) -> tuple[Cell, ...]:
    return tuple(cell for method in METHODS for cell in both(LABELS[method], "80%", on_imagenet(scale, method, 0.8)))


def measured(runs: Sequence[tuple[Cell, Sequence[Path]]], work: Work) -> Measured:
    """The mean accuracy over all corruptions and severities of each run, kept in a file for each."""
    values = {}
    for folder in dict.fromkeys(folder for _, table in runs for folder in table):
        kept = work.out / f"{folder.name}.json"
        if not kept.is_file():
            write_json(kept, robustness(load_run(folder, device=work.device, data_dir=work.data_dir)))
        values[folder] = read_json(kept, {"mean": float})["mean"]
    return Measured(values)


RECIPE = Recipe(
    "table5",
    "Accuracy on corrupted images at 80 %",
    "Ji et al. 2024, Table 5",
    cells,
    notes=(
        STAND_IN + " The net is ResNet-20.",
        STUDY,
        ON_IMAGENET,
        *settings_notes(METHODS),
        "The corruptions are the published 19 at five severities, made from the test images and not read from the files of"
        " ImageNet-C, with ice that is drawn: accuracies do not compare.",
        "The entries, and the methods of the rows, are unknown to us; the paper's text says about 35 points below clean accuracy,"
        " and a mean gain of 3.23.",
    ),
    metric=Metric("mean test accuracy on corrupted images, %"),
    measure=measured,
)
