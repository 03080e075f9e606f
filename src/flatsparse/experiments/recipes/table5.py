"""Table 5 of Ji et al. (2024): corrupted images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flatsparse.common.json_files import read_json, write_json
from flatsparse.experiments.evaluate.record import evaluate
from flatsparse.experiments.evaluate.settings import Evaluation
from flatsparse.experiments.metric import Metric
from flatsparse.experiments.recipes.imagenet import ON_IMAGENET, on_imagenet, settings_notes
from flatsparse.experiments.recipes.recipe import Cell, Measured, Recipe, Scale, Work, both
from flatsparse.experiments.recipes.setting import LABELS, STAND_IN, STUDY

METHODS = ("grasp", "rigl", "mest")  # ours: those of the paper's rows are unknown


def cells(scale: Scale) -> tuple[Cell, ...]:
    return tuple(cell for method in METHODS for cell in both(LABELS[method], "80%", on_imagenet(scale, method, 0.8)))


def measured(runs: Sequence[tuple[Cell, Sequence[Path]]], work: Work) -> Measured:
    """The mean accuracy over all corruptions and severities of each run, kept in a file for each."""
    kept = {folder: work.out / f"{folder.name}.json" for _, table in runs for folder in table}
    todo = [folder for folder, file in kept.items() if not file.is_file()]
    if todo:
        chosen = Evaluation(
            tuple(todo), corruptions=True, data_dir=work.data_dir, device=work.device, jobs=work.jobs
        )  # all at once, so that each image is corrupted once
        tables = evaluate(chosen, work.out / "corrupted", work.console)["runs"]
        for folder, table in zip(todo, tables, strict=True):
            write_json(kept[folder], {name: table[name] for name in ("clean", "mean", "by")})
    values = {folder: read_json(file, {"mean": float})["mean"] for folder, file in kept.items()}
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
