"""The common settings of the runs of a scale, and the notes on them."""

from __future__ import annotations

from typing import Any

from flatsparse.experiments.recipes.recipe import Cell, Published, Scale, both
from flatsparse.experiments.run.config import RunConfig
from flatsparse.experiments.run.precision import has_bf16

# Layers and distribution as each method's own paper and code has them; see `flatsparse list presets`.
CONVENTIONS: dict[str, dict[str, Any]] = {
    "snip": {"layers": "grasp"},
    "grasp": {"layers": "grasp"},
    "dsr": {"layers": "dsr"},
    "mest": {"layers": "mest"},
    "mest-ems": {"layers": "mest"},
}
LABELS = {
    "gmp": "GMP",
    "lth": "LT",
    "lrr": "LRR",
    "snip": "SNIP",
    "grasp": "GraSP",
    "set": "SET",
    "dsr": "DSR",
    "snfs": "SNFS",
    "rigl": "RigL",
    "mest": "MEST(EM)",
    "mest-ems": "MEST(EM&S)",
    "chex": "CHEX",
    "chase": "Chase",
}
STAND_IN = "smoke: a small net on 200 images of digits, 6 epochs, stands in for nets and data sets."
STUDY = (
    "laptop: each row's own network on 10,000 images of CIFAR-10 (or 100), 20 epochs; bf16 where the processor computes in it."
    " Published numbers are of another setting there, so that only the sign of a difference is judged."
)
OUR_STUDY = STUDY.replace("each row's own network", "ResNet-20")
REVIEW = "reviews of Ji et al. 2024"
STANDS_IN = {"imagenet": "cifar10"}  # at laptop
SMALL_NET = "resnet20"  # of our own studies at laptop, whatever net the paper's scale has


def run_at(scale: Scale, method: str, sparsity: float | None, data: str = "cifar10", **chosen: Any) -> RunConfig:
    """Return a run of a recipe at a scale. At the paper's it is of the very data set, so that no other is judged in its name.

    The paper's on CIFAR: 160 epochs, batch 64, learning rate 0.1 along a cosine, ρ 0.05 (Ji et al. 2024, sec. 4.1 and scripts),
    weight decay 1e-4 for all (of the script for SGD; that for SAM has 5e-4, see ``controls``).

    Args:
        chosen: settings that differ. ``model`` is that of the paper's scale and of laptop, unless ``laptop`` names another there;
            ``small`` is that of smoke.
    """
    small, model = chosen.pop("small", "digitnet"), chosen.pop("model", "resnet32")
    laptop = chosen.pop("laptop", model)
    common: dict[str, Any] = {"method": method, "sparsity": sparsity, "rho": 0.05, **CONVENTIONS.get(method, {})}
    if scale == "smoke":
        epochs = 2 if method in ("lth", "lrr") else 6  # of each round
        common |= {"data": "digits", "model": small, "train_size": 200, "epochs": epochs, "batch_size": 20, "lr": 0.05}
    elif scale == "laptop":
        common |= {"data": STANDS_IN.get(data, data), "model": laptop, "train_size": 10_000}
        common |= {"epochs": 20, "batch_size": 64}
        common |= {"precision": "bf16" if has_bf16("cpu") else "float32", "channels_last": True}
    else:
        common |= {"data": data, "model": model, "validation_size": 0, "epochs": 160, "batch_size": 64}
    return RunConfig.of(**{"weight_decay": 1e-4, **common, **chosen})


def reviewed(row: str, column: str, run: RunConfig, printed: tuple[float, float]) -> tuple[Cell, Cell]:
    """Return a cell without sharpness awareness, and the same with S²-SAM, beside what was printed in the reviews."""
    plain, sharp = (Published(value, source=REVIEW) for value in printed)
    return both(row, column, run, plain, sharp)
