"""The variants that are measured against each other: optimizers around the same base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from flatsparse.common.errors import InputError
from flatsparse.experiments.bench.released import ThreeBuffers
from flatsparse.sam import kernel
from flatsparse.sam.optimizers import S2SAM, SAM

RHO = 0.05


@dataclass(frozen=True)
class Variant:
    """An optimizer around the base.

    Attributes:
        label: what it is called in tables.
        around: makes it, from the base and the model.
        passes: gradients in a step; with two, ``step`` takes a closure.
        masked: whether it differs from others only on a model with masks.
        compiled: whether it needs the compiled step, which is for CPUs with a C compiler.
    """

    label: str
    around: Callable[[Optimizer, nn.Module], Any]
    passes: int = 1
    masked: bool = False
    compiled: bool = False


def fused_sgd(model: nn.Module) -> Optimizer:
    """The base: SGD with momentum in the fastest form that torch has."""
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)


def fused_adamw(model: nn.Module) -> Optimizer:
    """The other base: AdamW in the fastest form that torch has."""
    return torch.optim.AdamW(model.parameters(), lr=0.001, fused=True)


# What variants are put around: its name in tables, and what makes it.
BASES: dict[str, tuple[str, Callable[[nn.Module], Optimizer]]] = {
    "sgd": ("SGD", fused_sgd),
    "adamw": ("AdamW", fused_adamw),
}
BASE, CONTROL = "sgd", "sgd again"  # the control is a second, identical base: its ratio to the first is pure noise
VARIANTS = {
    BASE: Variant("SGD", lambda base, model: base),
    CONTROL: Variant("SGD again", lambda base, model: base),
    "s2sam": Variant("S²-SAM", lambda base, model: S2SAM(base, RHO).follow(model)),
    "s2sam kernel": Variant(
        "S²-SAM compiled", lambda base, model: S2SAM(base, RHO, kernel=True).follow(model), compiled=True
    ),
    "s2sam compact": Variant(
        "S²-SAM compact", lambda base, model: S2SAM(base, RHO, compact=True).follow(model), masked=True
    ),
    "released": Variant("S²-SAM 3 buffers", lambda base, model: ThreeBuffers(base, model, RHO)),
    "sam": Variant("SAM", lambda base, model: SAM(base, RHO).follow(model), passes=2),
}


def variants_for(sparsity: float, device: str, base: str = "sgd") -> dict[str, Variant]:
    """The variants that differ at a sparsity and can be made here, with a base's name in their labels."""
    compiled = device == "cpu" and _compiles()
    return {
        name: replace(variant, label=variant.label.replace("SGD", BASES[base][0]))
        for name, variant in VARIANTS.items()
        if (sparsity or not variant.masked) and (compiled or not variant.compiled)
    }


def _compiles() -> bool:
    try:
        kernel.library()
    except InputError:
        return False
    return True
