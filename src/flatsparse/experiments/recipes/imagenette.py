"""Imagenette of 64 pixels: a sparse network of ImageNet on images of ImageNet, small enough for two cores."""

from __future__ import annotations

from flatsparse.experiments.recipes.on_corrupted import MADE_HERE, ON_CORRUPTED, accuracy_on_corrupted
from flatsparse.experiments.recipes.recipe import Cell, Recipe, Scale, both
from flatsparse.experiments.recipes.setting import LABELS, STAND_IN, run_at
from flatsparse.experiments.run.config import RunConfig, change
from flatsparse.experiments.run.precision import has_bf16

METHOD, SPARSITY = "rigl", 0.9
EPOCHS = {"laptop": 6, "paper": 100}


def cells(scale: Scale) -> tuple[Cell, ...]:
    return both(LABELS[METHOD], f"{SPARSITY:.0%}", _run(scale))


def _run(scale: Scale) -> RunConfig:
    if scale == "smoke":
        return run_at(scale, METHOD, SPARSITY)
    run = run_at("paper", METHOD, SPARSITY, "imagenette", model="resnet18", warmup=1, distribution="erk")
    precision = "bf16" if has_bf16("cpu") else "float32"
    return change(run, epochs=EPOCHS[scale], precision=precision, channels_last=True)


RECIPE = Recipe(
    "imagenette",
    "ResNet-18 on Imagenette of 64 pixels and on its corrupted images, RigL at 90 %",
    "ours",
    cells,
    notes=(
        STAND_IN,
        "laptop: 9,469 images of 64 pixels, random crops, 6 epochs in batches of 64, learning rate 0.1 along a cosine after an"
        " epoch of warm-up, weight decay 1e-4, ρ 0.05; bf16 where the processor computes in it. paper: 100 epochs.",
        "1,000 test images at even distances. " + MADE_HERE,
    ),
    metric=ON_CORRUPTED,
    seeds={"smoke": 2, "laptop": 3, "paper": 5},
    measure=accuracy_on_corrupted(images=1000),
)
