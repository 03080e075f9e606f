"""The base optimizers that a compiled pass can stand in for: what each keeps in its state, and the settings of a group in C."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.optim import SGD, Adam, AdamW, Optimizer

Group = Mapping[str, Any]


@dataclass(frozen=True)
class Base:
    """A base optimizer, whose pass in C takes weights, gradients, its state, the perturbed weights, sizes and settings.

    Attributes:
        function: the pass in C.
        state: the keys of its state that are shaped like the weight, in the order of the pass.
        counts: the keys of its counts of steps, scalars, which come after these.
        settings: the types in C of a group's settings.
        settings_of: the settings of a group.
        suits: whether the pass does what a group asks for.
    """

    function: str
    state: tuple[str, ...]
    counts: tuple[str, ...]
    settings: tuple[Any, ...]
    settings_of: Callable[[Group], tuple[Any, ...]]
    suits: Callable[[Group], bool]

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys, in the order of the pass."""
        return self.state + self.counts


def _sgd(group: Group) -> tuple[Any, ...]:
    fresh = 1 - group["dampening"]
    return float(group["lr"]), group["momentum"], fresh, group["weight_decay"], int(group["nesterov"])


def _adam(group: Group) -> tuple[Any, ...]:
    numbers = (group["lr"], *group["betas"], group["eps"], group["weight_decay"])
    return *map(float, numbers), int(group["decoupled_weight_decay"])


def _is_plain(group: Group) -> bool:
    """True without options that make a step another one."""
    return not any(group.get(option) for option in ("maximize", "amsgrad", "capturable", "differentiable"))


_SGD = Base(
    function="flatsparse_step",
    state=("momentum_buffer",),
    counts=(),
    settings=(*[ctypes.c_float] * 4, ctypes.c_int),
    settings_of=_sgd,
    suits=lambda group: group["momentum"] != 0 and _is_plain(group),
)
_ADAM = Base(
    function="flatsparse_adam",
    state=("exp_avg", "exp_avg_sq"),
    counts=("step",),
    settings=(*[ctypes.c_double] * 5, ctypes.c_int),
    settings_of=_adam,
    suits=_is_plain,
)
BASES: Mapping[type[Optimizer], Base] = {SGD: _SGD, Adam: _ADAM, AdamW: _ADAM}


def base_of(optimizer: Optimizer) -> Base | None:
    """Return the entry of an optimizer; None where the pass cannot take its step, by its type or its options now."""
    base = BASES.get(type(optimizer))
    return base if base is not None and all(map(base.suits, optimizer.param_groups)) else None
