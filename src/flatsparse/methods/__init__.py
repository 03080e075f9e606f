"""Sparse-training methods, one paper per file. A method is a frozen dataclass of its options that makes a plan."""

from __future__ import annotations

import dataclasses
from typing import Any

from flatsparse.distributions import DISTRIBUTIONS
from flatsparse.errors import InputError, unknown
from flatsparse.methods.acdc import ACDC
from flatsparse.methods.dsr import DSR
from flatsparse.methods.gmp import GMP
from flatsparse.methods.grasp import GraSP
from flatsparse.methods.itop import SETITOP, RigLITOP
from flatsparse.methods.lth import LRR, LTH
from flatsparse.methods.mest import MEST, MESTSoft
from flatsparse.methods.rigl import RigL
from flatsparse.methods.set import SET, OriginalSET
from flatsparse.methods.snfs import SNFS
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
    "acdc": ACDC,
    "set": SET,
    "set-original": OriginalSET,
    "set-itop": SETITOP,
    "dsr": DSR,
    "snfs": SNFS,
    "rigl": RigL,
    "rigl-itop": RigLITOP,
    "mest": MEST,
    "mest-ems": MESTSoft,
}
ALIASES = {"imp": "lth"}  # iterative magnitude pruning

__all__ = [
    "ACDC",
    "ALIASES",
    "DSR",
    "GMP",
    "LRR",
    "LTH",
    "MEST",
    "METHODS",
    "SET",
    "SETITOP",
    "SNFS",
    "SNIP",
    "Dense",
    "GraSP",
    "MESTSoft",
    "OriginalSET",
    "RigL",
    "RigLITOP",
    "Static",
    "name_of",
    "named",
]


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


def name_of(method: Method) -> str:
    """The name a method is listed under, or its class's for one that is not."""
    return next((name for name, kind in METHODS.items() if kind is type(method)), type(method).__name__.lower())
