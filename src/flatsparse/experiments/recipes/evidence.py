"""The measurements of what S²-SAM does: the recipes of the page `docs/evidence-methods.md`.

A net that has fitted its training set is where flatness can pay, so the settings are small enough to be fitted on two cores:
500 images of CIFAR-10 as they are, 300 of digits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from flatsparse.experiments.recipes.recipe import TUNING_SEEDS, Cell, Recipe, Scale, both
from flatsparse.experiments.recipes.setting import LABELS, SMALL_NET, STAND_IN, run_at
from flatsparse.experiments.run.config import RunConfig, change
from flatsparse.experiments.run.sharpness import Sharpness

CIFAR: dict[str, Any] = {
    "train_size": 500,
    "validation_size": 0,
    "augmentation": False,
    "epochs": 40,
    "batch_size": 32,
    "lr": 0.05,
}
# Of the runs that ρ is chosen by: as all others, and images held out, which are looked at once.
TUNED: dict[Scale, dict[str, Any]] = {
    "smoke": {},
    "laptop": {"validation_size": 2000, "validate_every": 40},
    "paper": {"validation_size": 5000},
}
# Too short for its training set.
SHORT: dict[Scale, dict[str, Any]] = {
    "smoke": {"epochs": 2},
    "laptop": {"train_size": 5000, "augmentation": True, "epochs": 8, "batch_size": 128, "lr": 0.1},
    "paper": {"epochs": 10},
}
DIGITS: dict[str, Any] = {"train_size": 300, "epochs": 40, "batch_size": 64, "lr": 0.1}  # of `make demo`
# What evidence-rho and evidence-digits-rho choose from, and what they chose, by the share of wrong labels: a test compares
# these with the results.
RHOS, DIGITS_RHOS, DIGITS_ENDS = (0.01, 0.03, 0.1, 0.3, 1.0), (0.05, 0.1, 0.2, 0.5, 1.0), (0.01,)
NOISE = 0.2
DECAYS = (1e-4, 5e-4)  # of the released scripts for SGD and for S²-SAM
RHO: dict[str, dict[float, dict[Sharpness, float]]] = {
    "cifar10": {
        0.0: {"s2sam": 0.1, "sam": 0.1, "random": 0.03, "momentum": 0.03},
        NOISE: {"s2sam": 0.1, "sam": 0.1, "random": 1.0},
    },
    "digits": {0.0: {"s2sam": 0.05, "sam": 0.5, "random": 0.1}, NOISE: {"s2sam": 0.5, "sam": 0.2, "random": 1.0}},
}
FIT = "laptop: ResNet-20 on 500 images of CIFAR-10 without augmentation, 40 epochs; or digits, 300 images, 40 epochs."
OTHERS: tuple[Sharpness, ...] = ("random", "momentum", "sam")
METHODS = (
    *("static", "gmp", "snip", "grasp", "set", "dsr", "snfs", "rigl", "mest", "mest-ems"),
    *("chex", "chase"),
)
ROUNDS = ("lth", "lrr")


def on_cifar(scale: Scale, method: str = "rigl", sparsity: float = 0.9, **chosen: Any) -> RunConfig:
    settings = {"weight_decay": 5e-4, **(CIFAR if scale == "laptop" else {}), **chosen}
    return run_at(scale, method, sparsity, laptop=SMALL_NET, **settings)


def on_digits(scale: Scale, method: str = "rigl", sparsity: float = 0.95, **chosen: Any) -> RunConfig:
    """The same at every scale but smoke. Rounds prune a half, not a fifth, so that there are 5 of them, not 14.

    CHEX and Chase explore all channels that can be taken out; Chase removes them together with its updates, and ends layer by
    layer.
    """
    of_method: dict[str, dict[str, Any]] = {
        "chex": {"channels": 0.5, "explore": "removable"},
        "chase": {"explore": "removable", "last_phase": "layer", "channel_offset": 0.0},
        "lth": {"drop_fraction": 0.5},
        "lrr": {"drop_fraction": 0.5},
    }
    settings = {"weight_decay": 5e-4, **({} if scale == "smoke" else DIGITS), **of_method.get(method, {}), **chosen}
    return run_at("smoke", method, None if method == "chex" else sparsity, **settings)


def labels(noise: float) -> str:
    return f"{noise:.0%} wrong labels" if noise else "right labels"


def named(run: RunConfig) -> str:
    removed = (
        f"{run.pruning.channels:.0%} of channels" if run.pruning.sparsity is None else f"{run.pruning.sparsity:.0%}"
    )
    return f"{LABELS.get(run.pruning.method, run.pruning.method)} {removed}"


def pair(row: str, column: str, run: RunConfig, *others: Sharpness) -> list[Cell]:
    """Plain, S²-SAM and others, each with its chosen ρ."""
    chosen = RHO[run.dataset.data].get(run.label_noise, RHO[run.dataset.data][0.0])
    cells = list(both(row, column, run))
    cells += [Cell(row, column, change(run, sharpness=name)) for name in others]
    return [dataclasses.replace(c, run=dataclasses.replace(c.run, rho=chosen.get(c.run.sharpness, 0.0))) for c in cells]


def over_rho(run: RunConfig, rhos: Sequence[float], column: str, *names: Sharpness) -> list[Cell]:
    """A row for each ρ."""
    plain = change(run, rho=0.0)
    return [
        Cell(f"ρ {rho:g}", column, plain if name == "none" else change(run, sharpness=name, rho=rho))
        for rho in rhos
        for name in ("none", *names)
    ]


def rho(scale: Scale) -> list[Cell]:
    runs = [on_cifar(scale, label_noise=noisy, **TUNED[scale]) for noisy in RHO["cifar10"]]
    return [
        cell for run in runs for cell in over_rho(run, RHOS, labels(run.label_noise), *RHO["cifar10"][run.label_noise])
    ]


def main(scale: Scale) -> list[Cell]:
    runs = [on_cifar(scale, method, sparsity) for sparsity in (0.9, 0.98) for method in ("rigl", "mest")]
    return [cell for run in runs for cell in pair(named(run), labels(0), run, *(OTHERS if run == runs[0] else ()))]


def fixed(scale: Scale) -> list[Cell]:
    runs = [on_cifar(scale, method, 0.95) for method in ("static", "snip", "grasp")]
    return [cell for run in runs for cell in pair(named(run), labels(0), run)]


def short(scale: Scale) -> list[Cell]:
    run = on_cifar(scale, "static", 0.95, **SHORT[scale])
    cells = pair(named(run), labels(0), run, "random", "sam")
    shorter = dataclasses.replace(cells[0].run, sharpness="s2sam", rho=0.03)
    return [*cells, dataclasses.replace(cells[0], run=shorter, control="s2sam, ρ 0.03")]


def noise(scale: Scale) -> list[Cell]:
    run = on_cifar(scale, label_noise=NOISE)
    return pair(named(run), labels(NOISE), run, "random", "sam")


def masking(scale: Scale, on: Callable[..., RunConfig] = on_cifar) -> list[Cell]:
    cells = []
    for noisy in (0.0, NOISE):
        run = on(scale, label_noise=noisy)
        cells += pair(named(run), labels(noisy), run)
        unmasked = change(cells[-1].run, mask_perturbation=False)
        cells.append(dataclasses.replace(cells[-1], run=unmasked, control="s2sam, all weights perturbed"))
    return cells


def decay(scale: Scale, noises: Sequence[float] = (0.0,), on: Callable[..., RunConfig] = on_cifar) -> list[Cell]:
    runs = [on(scale, label_noise=noisy, weight_decay=value) for noisy in noises for value in DECAYS]
    return [cell for run in runs for cell in pair(f"decay {run.optim.weight_decay:g}", labels(run.label_noise), run)]


def digits_rho(scale: Scale, rhos: Sequence[float] = DIGITS_RHOS) -> list[Cell]:
    runs = [on_digits(scale, label_noise=noisy) for noisy in RHO["digits"]]
    return [cell for run in runs for cell in over_rho(run, rhos, labels(run.label_noise), "s2sam", "random", "sam")]


def digits(scale: Scale, methods: Sequence[str] = METHODS) -> list[Cell]:
    runs = [on_digits(scale, method, label_noise=noisy) for method in methods for noisy in RHO["digits"]]
    return [cell for run in runs for cell in pair(named(run), labels(run.label_noise), run, "random", "sam")]


def digits_main(scale: Scale) -> list[Cell]:
    runs = [
        on_digits(scale, method, sparsity, label_noise=noisy)
        for noisy in RHO["digits"]
        for sparsity in (0.9, 0.98)
        for method in ("rigl", "mest")
    ]
    return [cell for run in runs for cell in pair(named(run), labels(run.label_noise), run)]


def recipe(name: str, title: str, cells: Callable[[Scale], Sequence[Cell]], seeds: int = 10, first: int = 0) -> Recipe:
    counts: dict[Scale, int] = {"smoke": 1, "laptop": seeds, "paper": 3}
    return Recipe(f"evidence-{name}", title, "ours", cells, notes=(STAND_IN, FIT), seeds=counts, first_seed=first)


RECIPES = (
    recipe("rho", "ρ on CIFAR-10, chosen on validation images", rho, 2, TUNING_SEEDS),
    recipe("main", "CIFAR-10: RigL and MEST(EM) at 90 and 98 %", main, 5),
    recipe("fixed", "CIFAR-10: masks that do not move, at 95 %", fixed, 5),
    recipe("noise", "CIFAR-10: a fifth of the training labels wrong", noise, 5),
    recipe("masking", "CIFAR-10: active weights perturbed, or all as in the released code", masking, 5),
    recipe("decay", "CIFAR-10: the weight decays of the released scripts", decay, 5),
    recipe("short", "CIFAR-10: a training set that is not fitted", short, 5),
    recipe("digits-rho", "ρ on digits, chosen on validation images", digits_rho, 3, TUNING_SEEDS),
    recipe("digits", "Digits: methods by sharpness", digits),
    recipe("digits-rounds", "Digits: methods in rounds by sharpness", lambda scale: digits(scale, ROUNDS), 5),
    recipe("digits-main", "Digits: RigL and MEST(EM) at 90 and 98 %", digits_main),
    recipe(
        "digits-masking",
        "Digits: active weights perturbed, or all",
        lambda scale: masking(scale, on_digits),
    ),
    recipe(
        "digits-decay",
        "Digits: weight decays of the released scripts",
        lambda scale: decay(scale, (0.0, NOISE), on_digits),
    ),
    recipe("digits-ends", "Digits: ρ where it breaks", lambda scale: digits_rho(scale, DIGITS_ENDS), 3, TUNING_SEEDS),
)
