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
IMAGENET = (
    "ImageNet-1k and GPUs: 1.28M images, which this version would hold in memory (193 GB at 224x224)"
    " and could only crop as CIFAR is, not at random sizes"
)
STAND_IN = "smoke: a small net on 200 images of digits, 6 epochs, stands in for nets and data sets."
STUDY = (
    "laptop: ResNet-20 on 10,000 images of CIFAR-10 (or 100), 20 epochs; bf16 where the processor computes in it."
    " Published numbers are of another setting there, so that only the sign of a difference is judged."
)
REVIEW = "reviews of Ji et al. 2024"
STANDS_IN = {"imagenet": "cifar10"}  # at laptop
ON_IMAGENET = "ImageNet cells cannot run here at the scale of the paper; in laptop ResNet-20 on CIFAR-10 stands in."


def run_at(scale: Scale, method: str, sparsity: float | None, data: str = "cifar10", **chosen: Any) -> RunConfig:
    """Return a run of a recipe at a scale. At the paper's it is of the very data set, so that no other is judged in its name.

    The paper's on CIFAR: 160 epochs, batch 64, learning rate 0.1 along a cosine, ρ 0.05 (Ji et al. 2024, sec. 4.1 and scripts),
    weight decay 1e-4 for all (of the script for SGD; that for SAM has 5e-4, see ``controls``).

    Args:
        chosen: settings that differ. ``model`` is that of the paper's scale alone; ``small`` is that of smoke.
    """
    small, model = chosen.pop("small", "digitnet"), chosen.pop("model", "resnet32")
    common: dict[str, Any] = {"method": method, "sparsity": sparsity, "rho": 0.05, **CONVENTIONS.get(method, {})}
    if scale == "smoke":
        epochs = 2 if method in ("lth", "lrr") else 6  # of each round
        common |= {"data": "digits", "model": small, "train_size": 200, "epochs": epochs, "batch_size": 20, "lr": 0.05}
    elif scale == "laptop":
        common |= {"data": STANDS_IN.get(data, data), "model": "resnet20", "train_size": 10_000}
        common |= {"epochs": 20, "batch_size": 64}
        common |= {"precision": "bf16" if has_bf16("cpu") else "float32", "channels_last": True}
    else:
        common |= {"data": data, "model": model, "validation_size": 0, "epochs": 160, "batch_size": 64}
    return RunConfig.of(**{"weight_decay": 1e-4, **common, **chosen})


def on_imagenet(scale: Scale, method: str, sparsity: float | None, **chosen: Any) -> RunConfig:
    """Return a run of a recipe on ImageNet; ResNet-50 unless ``model`` is another, with ResNet-20 in smoke."""
    return run_at(scale, method, sparsity, "imagenet", **{"model": "resnet50", "small": "resnet20", **chosen})


def imagenet_needs(scale: Scale) -> str | None:
    """Return what cells on ImageNet need that is not here."""
    return IMAGENET if scale == "paper" else None


def reviewed(
    row: str, column: str, run: RunConfig, printed: tuple[float, float], needs: str | None = None
) -> tuple[Cell, Cell]:
    """Return a cell without sharpness awareness, and the same with S²-SAM, beside what was printed in the reviews."""
    plain, sharp = (Published(value, source=REVIEW) for value in printed)
    return both(row, column, run, plain, sharp, needs=needs)
