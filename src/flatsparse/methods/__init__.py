"""Sparse-training methods, one paper per file. A method is a frozen dataclass of its options that makes a plan."""

from __future__ import annotations

import dataclasses
from typing import Any

from flatsparse.distributions import DISTRIBUTIONS
from flatsparse.errors import InputError, unknown
from flatsparse.methods.gmp import GMP
from flatsparse.methods.grasp import GraSP
from flatsparse.methods.lth import LRR, LTH
from flatsparse.methods.rigl import RigL
from flatsparse.methods.set import SET
from flatsparse.methods.snip import SNIP
from flatsparse.methods.static import Dense, Static
from flatsparse.plan import Method

METHODS: dict[str, type[Method]] = {
    "dense": Dense,
    "static": Static,
    "snip": SNIP,
    "grasp": GraSP,
    "lth": LTH,
    "lrr": LRR,
    "gmp": GMP,
    "set": SET,
    "rigl": RigL,
}
ALIASES = {"imp": "lth"}  # iterative magnitude pruning

__all__ = ["ALIASES", "GMP", "LRR", "LTH", "METHODS", "SET", "SNIP", "Dense", "GraSP", "RigL", "Static", "named"]


def named(name: str, options: dict[str, Any]) -> Method:
    """The method of a name with its options; a distribution may be given by name too.

    Raises: InputError for an unknown name or option.
    """
    kind = METHODS.get(ALIASES.get(name.lower(), name.lower()))
    if kind is None:
        raise unknown("method", name, METHODS)
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]  # methods are dataclasses
    for option in options:
        if option not in known:
            raise InputError(f"method '{name}' has no option '{option}' (it has: {', '.join(known) or 'none'})")
    chosen = options.get("distribution")
    if isinstance(chosen, str):
        if chosen not in DISTRIBUTIONS:
            raise unknown("distribution", chosen, DISTRIBUTIONS)
        options = {**options, "distribution": DISTRIBUTIONS[chosen]}
    return kind(**options)
