"""What S²-SAM does, measured: the recipes of the page `docs/evidence.md`.

A net that has fitted its training set is where flatness can pay, so the CIFAR setting is small enough to be fitted: 500 images
as they are. `evidence-underfit` shows the other side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from flatsparse.lab.compare import TUNING_SEEDS
from flatsparse.lab.recipes.recipe import Cell, Recipe, Scale, both
from flatsparse.lab.recipes.setting import LABELS, STAND_IN, run_at
from flatsparse.lab.run import Run, Sharpness

FITTED: dict[str, Any] = {
    "train_size": 500,
    "validation_size": 0,
    "augmentation": False,
    "epochs": 25,
    "batch_size": 32,
    "lr": 0.05,
    "weight_decay": 5e-4,
}
# What evidence-rho and evidence-digits-rho choose from, and what they chose: a test compares these with the results.
RHOS, DIGITS_RHOS = (0.01, 0.03, 0.1, 0.3), (0.05, 0.1, 0.2, 0.5)
RHO: dict[Sharpness, float] = {"s2sam": 0.1, "sam": 0.1, "random": 0.1, "momentum": 0.1}
DIGITS_RHO: dict[float, dict[Sharpness, float]] = {
    0.0: {"s2sam": 0.05, "sam": 0.5, "random": 0.1},
    0.2: {"s2sam": 0.5, "sam": 0.2, "random": 0.2},
}
ENDS = (1.0,)
NOISE = 0.2
VALIDATION: dict[Scale, int] = {"smoke": 300, "laptop": 500, "paper": 5000}  # images that ρ is chosen by
FIT = "laptop: ResNet-20 on 500 images of CIFAR-10 without augmentation, which it fits; or digits, 300 scans of them."


def fitted(scale: Scale, method: str = "rigl", sparsity: float = 0.9, **chosen: Any) -> Run:
    """A run whose training set is fitted, or of the other scales' own settings."""
    return run_at(scale, method, sparsity, **{**(FITTED if scale == "laptop" else {"weight_decay": 5e-4}), **chosen})


def pair(row: str, column: str, run: Run, *others: Sharpness) -> list[Cell]:
    """Plain, S²-SAM and others, each with its chosen ρ."""
    cells = list(both(row, column, run))
    cells += [Cell(row, column, dataclasses.replace(run, sharpness=name)) for name in others]
    return [dataclasses.replace(c, run=dataclasses.replace(c.run, rho=RHO.get(c.run.sharpness, 0.0))) for c in cells]


def over_rho(run: Run, rhos: Sequence[float], *names: Sharpness) -> list[Cell]:
    """A row for each ρ."""
    return [
        Cell(
            f"ρ {rho:g}",
            f"{LABELS[run.method]} {run.sparsity:.0%}",
            dataclasses.replace(run, sharpness=name, rho=rho if name != "none" else 0.0),
        )
        for rho in rhos
        for name in ("none", *names)
    ]


def tuned(scale: Scale) -> Run:
    return dataclasses.replace(fitted(scale), validation_size=VALIDATION[scale])


def rho(scale: Scale) -> list[Cell]:
    return over_rho(tuned(scale), RHOS, "s2sam", "random", "sam", "momentum")


def ends(scale: Scale) -> list[Cell]:
    return over_rho(tuned(scale), ENDS, "s2sam", "random", "sam")


def main(scale: Scale) -> list[Cell]:
    return [
        cell
        for sparsity in (0.9, 0.98)
        for method in ("rigl", "mest")
        for cell in pair(LABELS[method], f"{sparsity:.0%}", fitted(scale, method, sparsity))
    ]


def directions(scale: Scale) -> list[Cell]:
    return pair("RigL", "90%", fitted(scale), "random", "sam", "momentum")


def noise(scale: Scale) -> list[Cell]:
    return pair("RigL 90%", f"{NOISE:.0%} wrong labels", fitted(scale, label_noise=NOISE), "random", "sam")


def masking(scale: Scale) -> list[Cell]:
    cells = pair("RigL", "90%", fitted(scale))
    unmasked = dataclasses.replace(cells[1].run, mask_perturbation=False)
    return [*cells, dataclasses.replace(cells[1], run=unmasked, control="s2sam, all weights perturbed")]


def decay(scale: Scale) -> list[Cell]:
    return [
        cell
        for value in (1e-4, 5e-4)
        for cell in pair("RigL 90%", f"weight decay {value:g}", dataclasses.replace(fitted(scale), weight_decay=value))
    ]


def fixed(scale: Scale) -> list[Cell]:
    return [
        cell
        for method, name in (("static", "static"), ("snip", LABELS["snip"]))
        for cell in pair(name, "95%", fitted(scale, method, 0.95))
    ]


def underfit(scale: Scale) -> list[Cell]:
    longer = {"augmentation": True, "train_size": 2000, "epochs": 8} if scale == "laptop" else {}
    return pair("RigL 90%", "underfit", dataclasses.replace(fitted(scale), **longer))


def on_digits(method: str, sparsity: float, label_noise: float, sharpness: Sharpness, rho: float) -> Run:
    """The setting of `make demo`."""
    about = {"train_size": 300, "epochs": 40, "batch_size": 64, "lr": 0.1, "weight_decay": 5e-4}
    run = run_at("smoke", method, sparsity, **about, label_noise=label_noise)
    return dataclasses.replace(run, sharpness=sharpness, rho=rho)


def digits(scale: Scale) -> list[Cell]:
    short: dict[str, Any] = {"epochs": 2, "train_size": 100, "batch_size": 8} if scale == "smoke" else {}
    return [
        Cell(
            LABELS.get(method, method),
            f"{noisy:.0%} wrong labels",
            dataclasses.replace(on_digits(method, 0.0 if method == "dense" else 0.95, noisy, name, rho), **short),
        )
        for method in ("dense", "static", "gmp", "snip", "grasp", "set", "dsr", "snfs", "rigl", "mest", "mest-ems")
        for noisy, rhos in DIGITS_RHO.items()
        for name, rho in {"none": 0.0, **rhos}.items()
    ]


def digits_rho(scale: Scale) -> list[Cell]:
    return [
        Cell(f"ρ {rho:g}", f"RigL, {noisy:.0%} wrong labels", on_digits("rigl", 0.95, noisy, name, rho))
        for rho in DIGITS_RHOS
        for noisy, rhos in DIGITS_RHO.items()
        for name in ("none", *rhos)
    ]


def recipe(name: str, title: str, cells: Callable[[Scale], Sequence[Cell]], seeds: int = 5, first: int = 0) -> Recipe:
    counts: dict[Scale, int] = {"smoke": 1, "laptop": seeds, "paper": 3}
    return Recipe(f"evidence-{name}", title, "ours", cells, notes=(STAND_IN, FIT), seeds=counts, first_seed=first)


RECIPES = (
    recipe("digits-rho", "ρ on digits, chosen on validation scans", digits_rho, 3, TUNING_SEEDS),
    recipe("digits", "Digits: methods by sharpness, clean and noisy", digits, 10),
    recipe("rho", "ρ, chosen on validation images", rho, 2, TUNING_SEEDS),
    recipe("main", "RigL and MEST(EM) at 90 and 98 %, plain and S²-SAM", main),
    recipe("directions", "Where to look: SAM, noise, momentum", directions),
    recipe("noise", "A fifth of the training labels wrong", noise),
    recipe("masking", "Live weights perturbed, or all as in the released code", masking),
    recipe("decay", "The weight decays of the released scripts", decay),
    recipe("fixed", "Masks that do not move, at 95 %", fixed, 3),
    recipe("underfit", "A training set that is not fitted", underfit, 3),
    recipe("ends", "ρ where it breaks", ends, 2, TUNING_SEEDS),
)
