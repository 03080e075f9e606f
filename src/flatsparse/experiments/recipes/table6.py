"""Table 6 of Ji et al. (2024), with SAM's column of the reviews."""

from __future__ import annotations

from flatsparse.experiments.recipes.imagenet import ON_IMAGENET, imagenet_at, settings_notes
from flatsparse.experiments.recipes.recipe import Cell, Published, Recipe, Scale, both
from flatsparse.experiments.recipes.setting import REVIEW, STAND_IN, STUDY, run_at
from flatsparse.experiments.run.config import RunConfig, change

TABLE = "Ji et al. 2024, Table 6"
# network: data set, its name in MODELS, epochs, plain, S²-SAM, SAM
PRINTED = {
    "ResNet-32": ("CIFAR-10", "resnet32", 160, 94.58, 94.99, 95.32),
    "MobileNet-V2": ("CIFAR-10", "mobilenet_v2", 350, 94.13, 94.55, 94.77),
    "VGG-19": ("CIFAR-10", "vgg19", 160, 94.21, 94.48, 94.71),
    "EfficientNet-B0": ("ImageNet", "efficientnet_b0", 350, 76.54, 77.10, 77.38),
    "ResNet-34": ("ImageNet", "resnet34", 150, 74.09, 74.58, 74.77),
    "ResNet-50": ("ImageNet", "resnet50", 150, 76.90, 77.32, 77.58),
}
NAMES = {"CIFAR-10": "cifar10", "ImageNet": "imagenet"}
SMALL = {"ResNet-32": "resnet20", "ResNet-34": "resnet20", "ResNet-50": "resnet20"}


def cells(scale: Scale) -> tuple[Cell, ...]:
    table: list[Cell] = []
    for network, (data, model, epochs, plain, s2sam, sam) in PRINTED.items():
        run = _run(scale, network, data, model, epochs)
        table += both(network, data, run, Published(plain, source=TABLE), Published(s2sam, source=TABLE))
        sharp = change(run, sharpness="sam")
        table.append(Cell(network, data, sharp, Published(sam, source=REVIEW)))
    return tuple(table)


def _run(scale: Scale, network: str, data: str, model: str, epochs: int) -> RunConfig:
    if scale == "paper" and data == "ImageNet":
        return imagenet_at("dense", 0.0, model, epochs=epochs)
    run = run_at(scale, "dense", 0.0, NAMES[data], model=model, small=SMALL.get(network, "digitnet"))
    return change(run, epochs=epochs) if scale == "paper" else run


RECIPE = Recipe(
    "table6",
    "Dense networks: plain, S²-SAM and SAM",
    TABLE,
    cells,
    notes=(
        STAND_IN
        + " ResNet-20 stands in for residual nets there, digitnet for the others: rows of one net are the same runs.",
        STUDY,
        ON_IMAGENET,
        *settings_notes(["dense"]),
    ),
)
