"""The measurement of recipes on corrupted images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from flatsparse.experiments.evaluate.record import evaluate
from flatsparse.experiments.evaluate.settings import Evaluation
from flatsparse.experiments.metric import Metric
from flatsparse.experiments.pieces import read_piece, write_piece
from flatsparse.experiments.recipes.recipe import Cell, Measured, Work

Measure = Callable[[Sequence[tuple[Cell, Sequence[Path]]], Work], Measured]
ON_CORRUPTED = Metric("mean test accuracy on corrupted images, %", margin=0.5)
MADE_HERE = (
    "The corruptions are the published 19 at five severities, made from the test images and not read from the files of"
    " ImageNet-C, with ice that is drawn: accuracies do not compare."
)


def accuracy_on_corrupted(images: int | None = None) -> Measure:
    """Return the measure of the mean accuracy over all corruptions and severities of each run, kept in a file for each.

    Args:
        images: the number of test images, at even distances; by default all.
    """

    def measured(runs: Sequence[tuple[Cell, Sequence[Path]]], work: Work) -> Measured:
        kept = {folder: work.out / f"{folder.name}.json" for _, table in runs for folder in table}
        todo = [folder for folder, file in kept.items() if not file.is_file()]
        if todo:  # all at once, so that each image is corrupted once
            chosen = Evaluation(
                tuple(todo),
                corruptions=True,
                images=images,
                data_dir=work.data_dir,
                device=work.device,
                jobs=work.jobs,
            )
            tables = evaluate(chosen, work.out / "corrupted", work.console)["runs"]
            for folder, table in zip(todo, tables, strict=True):
                write_piece(kept[folder], {name: table[name] for name in ("clean", "mean", "by")})
        return Measured({folder: read_piece(file, {"mean": float})["mean"] for folder, file in kept.items()})

    return measured
