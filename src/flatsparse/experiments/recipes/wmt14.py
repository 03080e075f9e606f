"""Translation, from the reviews."""

from __future__ import annotations

from typing import Any

from flatsparse.experiments.metric import Metric
from flatsparse.experiments.recipes.recipe import Cell, Recipe, Scale
from flatsparse.experiments.recipes.setting import REVIEW, reviewed
from flatsparse.experiments.run.config import RunConfig

PRINTED = {0.0: (27.6, 27.9), 0.8: (27.1, 27.5), 0.9: (26.4, 27.2)}
# As Vaswani et al. (2017, sec. 5) train their base model: 100,000 steps of 25,000 tokens, of which 4,000 are warm-up.
BASE: dict[str, Any] = {
    "betas": (0.9, 0.98),
    "lr": 7e-4,
    "lr_schedule": "inverse-sqrt",
    "label_smoothing": 0.1,
    "weight_decay": 0.0,
}
SIZES: dict[Scale, dict[str, Any]] = {
    "smoke": {
        "data": "numbers",
        "lr": 3e-3,
        "weight_decay": 1e-2,
        "train_size": 700,
        "epochs": 6,
        "batch_size": 200,
        "warmup": 1,
        "validate_every": 6,
    },
    # A run takes about twelve minutes of one core.
    "laptop": {
        **BASE,
        "data": "multi30k",
        "model": "transformer_tiny",
        "vocabulary": 4000,
        "lr": 3e-3,
        "lr_schedule": "cosine",
        "epochs": 6,
        "batch_size": 1000,
        "warmup": 1,
        "validation_size": 300,
        "validate_every": 6,
    },
    "paper": {**BASE, "data": "wmt14", "epochs": 18, "batch_size": 25_000, "warmup": 0.75},
}


def cells(scale: Scale) -> tuple[Cell, ...]:
    table: list[Cell] = []
    for sparsity, printed in PRINTED.items():
        method, shared = ("mest", "uniform") if sparsity else ("dense", None)
        run = RunConfig.of(method=method, sparsity=sparsity, distribution=shared, optimizer="adamw", **SIZES[scale])
        table += reviewed("MEST(EM)" if sparsity else "dense", f"{sparsity:.0%}", run, printed)
    return tuple(table)


RECIPE = Recipe(
    "wmt14",
    "A Transformer on WMT14 English-German, MEST(EM), all layers equally sparse",
    REVIEW,
    cells,
    notes=(
        "smoke: a tiny Transformer on numbers in words; laptop: the same on Multi30k, 6 epochs; paper: the base model."
        " Published numbers are of WMT14, so that elsewhere only the sign of a difference is judged.",
        "Batch, learning rate, weight decay and ρ of the printed runs are unknown to us: those of Vaswani et al. (2017) stand in,"
        " about 100,000 steps without weight decay, and ρ 0.05. Printed is the best SacreBLEU on validation, here that of the"
        " last weights on the test.",
    ),
    metric=Metric("BLEU"),
)
