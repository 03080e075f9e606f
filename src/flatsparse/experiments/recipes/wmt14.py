"""Translation, from the reviews."""

from __future__ import annotations

from typing import Any

from flatsparse.experiments.metric import Metric
from flatsparse.experiments.recipes.recipe import Cell, Recipe, Scale
from flatsparse.experiments.recipes.setting import REVIEW, reviewed
from flatsparse.experiments.run.config import RunConfig, change

PRINTED = {0.0: (27.6, 27.9), 0.8: (27.1, 27.5), 0.9: (26.4, 27.2)}
SIZES: dict[Scale, dict[str, Any]] = {
    "smoke": {"data": "numbers", "train_size": 700, "epochs": 6, "batch_size": 200, "validate_every": 6},
    "laptop": {"data": "multi30k", "epochs": 12, "batch_size": 2000},
    "paper": {"data": "wmt14"},
}


def cells(scale: Scale) -> tuple[Cell, ...]:
    table: list[Cell] = []
    for sparsity, printed in PRINTED.items():
        method, shared = ("mest", "uniform") if sparsity else ("dense", None)
        run = RunConfig.of(method=method, sparsity=sparsity, distribution=shared, optimizer="adamw", lr=3e-3, warmup=1)
        table += reviewed(
            "MEST(EM)" if sparsity else "dense",
            f"{sparsity:.0%}",
            change(run, weight_decay=1e-2, **SIZES[scale]),
            printed,
        )
    return tuple(table)


RECIPE = Recipe(
    "wmt14",
    "A Transformer on WMT14 English-German, MEST(EM), all layers equally sparse",
    REVIEW,
    cells,
    notes=(
        "smoke: a tiny Transformer on number words stands in, laptop: a small one on Multi30k. BLEU is of a beam search on the"
        " test after the last epoch; the printed numbers are SacreBLEU, the best on validation.",
        "The paper's batch, learning rate, weight decay and ρ are unknown to us.",
    ),
    metric=Metric("BLEU"),
)
