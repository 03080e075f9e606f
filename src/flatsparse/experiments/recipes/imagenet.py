"""The published settings of methods on ImageNet-1k, with their sources, and runs of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flatsparse.experiments.recipes.recipe import Scale
from flatsparse.experiments.recipes.setting import CONVENTIONS, run_at
from flatsparse.experiments.run.config import RunConfig

IMAGES = 1_281_167  # for training
ON_IMAGENET = (
    "ImageNet cells run at the scale of the paper where the data are; in laptop their networks see CIFAR-10's images of 32x32,"
    " of which the last stage has 1x1."
)
RHO = 1.0  # all runs on ImageNet (Ji et al. 2024, sec. 3.1)
DSR_MOVED, RESNET50_WEIGHTS = 400_000, 25_503_168  # what DSR moves at an update, and the weights of its net's matrices


@dataclass(frozen=True)
class PublishedSettings:
    """The settings of a method on ImageNet.

    Attributes:
        settings: by their flat names.
        every: epochs between updates of the masks, for methods whose papers count them in epochs.
        source: who published them.
        unknown: what its source does not tell us, and what stands in; empty where all is known.
    """

    settings: Mapping[str, Any]
    source: str
    unknown: str = ""
    every: float | None = None

    def period(self) -> dict[str, int]:
        """Return the period of the masks in steps, where it was published in epochs."""
        if self.every is None:
            return {}
        return {"every": round(self.every * -(-IMAGES // self.settings["batch_size"]))}


_OF_RIGL: dict[str, Any] = {
    "epochs": 100,
    "batch_size": 4096,
    "lr": 1.6,
    "lr_schedule": "step",
    "milestones": (0.3, 0.7, 0.9),
    "warmup": 5,
    "weight_decay": 1e-4,
    "label_smoothing": 0.1,
}
_UPDATES: dict[str, Any] = {"every": 100, "until": 25 / 32, "drop_fraction": 0.3}  # steps 25k of 32k
_OF_MEST: dict[str, Any] = {
    "epochs": 150,
    "batch_size": 2048,
    "lr": 2.048,
    "warmup": 8,
    "weight_decay": 1e-4,
    "label_smoothing": 0.1,
}
_OF_GRASP: dict[str, Any] = {
    "epochs": 90,
    "batch_size": 256,
    "lr": 0.1,
    "lr_schedule": "step",
    "milestones": (1 / 3, 2 / 3),
    "weight_decay": 1e-4,
}
_RIGL, _MEST = "Evci et al. 2020 and their code", "Yuan et al. 2021"
_MEST_UNKNOWN = (
    "batch, learning rate, warm-up and label smoothing are from memory, and its weight decay is unknown (1e-4)"
)
PUBLISHED: dict[str, PublishedSettings] = {
    "rigl": PublishedSettings(
        {**_OF_RIGL, **_UPDATES, "distribution": "erk"}, _RIGL, "warm-up and the length of 32,000 steps are from memory"
    ),
    "set": PublishedSettings(
        {**_OF_RIGL, **_UPDATES, "distribution": "erk"}, _RIGL, "where its masks stop changing is RigL's"
    ),
    "snfs": PublishedSettings(
        _OF_RIGL, "Dettmers & Zettlemoyer 2019", "its training recipe is unknown: RigL's stands in", every=1
    ),
    "dsr": PublishedSettings(
        {
            "epochs": 100,
            "batch_size": 256,
            "lr": 0.1,
            "lr_schedule": "step",
            "milestones": (0.3, 0.6, 0.9),
            "weight_decay": 1e-4,
            "every": 1000,
            "until": 0.95,
        },
        "Mostafa & Wang 2019 and their code",
        "learning rate and length are unknown (0.1; 100 epochs), and its period doubles at epochs 25, 50 and 75, here at 12.5,"
        " 40 and 70",
    ),
    "snip": PublishedSettings(_OF_GRASP, "as GraSP's", "its own recipe is unknown"),
    "grasp": PublishedSettings(
        _OF_GRASP,
        "Wang et al. 2020 and their code",
        "where its learning rate falls is unknown (a third and two thirds)",
    ),
    "mest": PublishedSettings({**_OF_MEST, "distribution": "uniform"}, _MEST, _MEST_UNKNOWN, every=5),
    "mest-ems": PublishedSettings({**_OF_MEST, "distribution": "uniform"}, _MEST, _MEST_UNKNOWN, every=5),
    "chex": PublishedSettings(
        {
            "epochs": 250,
            "batch_size": 1024,
            "lr": 1.024,
            "warmup": 8,
            "momentum": 0.875,
            "weight_decay": 3.05e-5,
            "label_smoothing": 0.1,
            "until": 180 / 250,
        },
        "Hou et al. 2022 and their code",
        every=2,
    ),
    "chase": PublishedSettings(
        {
            "epochs": 100,
            "batch_size": 512,
            "lr": 0.512,
            "warmup": 8,
            "weight_decay": 1e-4,
            "label_smoothing": 0.1,
            "every": 1000,
            "until": 0.8,
            "first_phase": "layer",
            "last_phase": "layer",
        },
        "Yin et al. 2023 and their code",
        "batch (512), weight decay (1e-4) and the schedule of the learning rate (a cosine) are unknown",
    ),
    "dense": PublishedSettings(
        _OF_MEST, "Ji et al. 2024, sec. 3.6: 150 epochs, EfficientNet-B0 350, as MEST", _MEST_UNKNOWN
    ),
}


def imagenet_at(method: str, sparsity: float | None, model: str = "resnet50", **chosen: Any) -> RunConfig:
    """Return a run of a method on ImageNet-1k with its published settings: see ``PUBLISHED``.

    Args:
        method: one of ``PUBLISHED``.
        sparsity: None for methods that take none.
        model: the network.
        chosen: settings that differ.
    """
    published = PUBLISHED[method]
    settings = {**published.settings, **published.period()}
    if method == "dsr" and sparsity:
        settings["drop_fraction"] = DSR_MOVED / ((1 - sparsity) * RESNET50_WEIGHTS)
    common = {
        "data": "imagenet",
        "validation_size": 0,
        "method": method,
        "sparsity": sparsity,
        "model": model,
        "rho": RHO,
    }
    return RunConfig.of(**{**common, **CONVENTIONS.get(method, {}), **settings, **chosen})


def on_imagenet(scale: Scale, method: str, sparsity: float | None, model: str = "resnet50", **chosen: Any) -> RunConfig:
    """Return a run of a recipe on ImageNet. At laptop its network sees CIFAR-10, in smoke ResNet-20 digits."""
    if scale == "paper":
        return imagenet_at(method, sparsity, model, **chosen)
    return run_at(scale, method, sparsity, "imagenet", **{"model": model, "small": "resnet20", **chosen})


def settings_notes(methods: Iterable[str]) -> tuple[str, ...]:
    """Return a sentence for each method on its settings on ImageNet: whose they are, and what of them is unknown to us."""
    notes = []
    for method in methods:
        known = PUBLISHED[method]
        unknown = f"; {known.unknown}" if known.unknown else ""
        notes.append(f"ImageNet settings of {method}: {known.source}{unknown}.")
    return tuple(notes)
