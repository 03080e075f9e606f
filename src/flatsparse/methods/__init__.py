"""Sparse-training methods, one paper per file; each is a frozen dataclass of its options that makes a plan."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any, cast

from flatsparse.common.errors import InputError, check_sparsity, unknown
from flatsparse.common.plugins import executed, name_for
from flatsparse.methods.acdc import ACDC
from flatsparse.methods.chase import Chase
from flatsparse.methods.chex import CHEX
from flatsparse.methods.dsr import DSR
from flatsparse.methods.gmp import GMP
from flatsparse.methods.grasp import GraSP
from flatsparse.methods.itop import SETITOP, RigLITOP
from flatsparse.methods.lth import LRR, LTH
from flatsparse.methods.mest import MEST, MESTSoft
from flatsparse.methods.rigl import RigL
from flatsparse.methods.safe import SAFE
from flatsparse.methods.set import SET, OriginalSET
from flatsparse.methods.snfs import SNFS
from flatsparse.methods.snip import SNIP
from flatsparse.methods.static import Dense, Static
from flatsparse.methods.traits import Traits, options_of, traits_of
from flatsparse.methods.wanda import Wanda
from flatsparse.sparse.distributions import DISTRIBUTIONS
from flatsparse.sparse.plan import Method

METHODS: dict[str, type[Method]] = {
    "dense": Dense,
    "static": Static,
    "snip": SNIP,
    "grasp": GraSP,
    "wanda": Wanda,
    "lth": LTH,
    "lrr": LRR,
    "gmp": GMP,
    "acdc": ACDC,
    "safe": SAFE,
    "set": SET,
    "set-original": OriginalSET,
    "set-itop": SETITOP,
    "dsr": DSR,
    "snfs": SNFS,
    "rigl": RigL,
    "rigl-itop": RigLITOP,
    "mest": MEST,
    "mest-ems": MESTSoft,
    "chex": CHEX,
    "chase": Chase,
}
ALIASES = {"imp": "lth"}  # iterative magnitude pruning
DEFAULT = "rigl"
FIXED = "static"  # the method that keeps the masks it starts from
IN_TABLE_4 = ("grasp", "rigl", "mest")  # of Ji et al. (2024), which measures their throughput

__all__ = [
    "ACDC",
    "ALIASES",
    "CHEX",
    "DEFAULT",
    "DSR",
    "FIXED",
    "GMP",
    "IN_TABLE_4",
    "LRR",
    "LTH",
    "MEST",
    "METHODS",
    "SAFE",
    "SET",
    "SETITOP",
    "SNFS",
    "SNIP",
    "Chase",
    "Dense",
    "GraSP",
    "MESTSoft",
    "OriginalSET",
    "RigL",
    "RigLITOP",
    "Static",
    "Traits",
    "Wanda",
    "as_method",
    "kind_of",
    "methods_with",
    "name_of",
    "name_of_kind",
    "named",
    "options_of",
    "sparsity_for",
    "traits_of",
]


def kind_of(name: str) -> type[Method]:
    """Return the method of a name or alias, or of a class in a Python file, as ``path/to/file.py:Name``; the file is executed.

    Raises: InputError for an unknown name, and a file that holds no such method.
    """
    file, by_file, there = name.rpartition(".py:")
    if by_file:
        return _in_file(Path(f"{file}.py"), there)
    kind = METHODS.get(ALIASES.get(name.lower(), name.lower()))
    if kind is None:
        raise unknown("method", name, METHODS)
    return kind


def _in_file(file: Path, name: str) -> type[Method]:
    if not file.is_file():
        raise InputError(f"no file '{file}' for method '{name}': give the path to a Python file, then :Name")
    module = sys.modules.get(name_for(file, "method")) or executed(
        file, "method"
    )  # one class, however often it is named
    kind = getattr(module, name, None)
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind) and hasattr(kind, "plan")):
        raise InputError(f"'{file}' has no method '{name}': give the name of a dataclass with plan(sparsity, steps)")
    return cast("type[Method]", kind)


def named(name: str, options: dict[str, Any]) -> Method:
    """Return the method of a name with its options; a distribution may be given by name too.

    Raises: InputError for an unknown name or option.
    """
    kind = kind_of(name)
    known = options_of(kind)
    for option in options:
        if option not in known:
            raise InputError(f"method '{name}' has no option '{option}' (it has: {', '.join(known) or 'none'})")
    chosen = options.get("distribution")
    if isinstance(chosen, str):
        if chosen not in DISTRIBUTIONS:
            raise unknown("distribution", chosen, DISTRIBUTIONS)
        options = {**options, "distribution": DISTRIBUTIONS[chosen]}
    return kind(**options)


def methods_with(option: str) -> list[str]:
    """Return the names of the listed methods that have an option."""
    return [name for name, kind in METHODS.items() if option in options_of(kind)]


def as_method(method: str | Method, options: dict[str, Any]) -> Method:
    """Return the method of a name with its options, or an object that has them already.

    Raises: InputError for anything else, and for options beside an object.
    """
    if isinstance(method, str):
        return named(method, options)
    if isinstance(method, type) or not hasattr(method, "plan"):
        raise InputError(f"method is {method!r}: give a name, or an object such as flatsparse.methods.RigL(every=50)")
    if options:
        raise InputError(
            f"options {', '.join(options)} were given beside a method object: give them to the object itself"
        )
    return method


def sparsity_for(method: Method, sparsity: float | None) -> float:
    """Return the sparsity that a method is to end at; 0 for one that takes none.

    Raises: InputError when it is missing, out of range, or given to a method that takes none.
    """
    if not traits_of(method).takes_sparsity:
        if sparsity is not None:
            by_channels = "channels" in options_of(method)
            instead = "give channels= instead, the fraction of them to prune" if by_channels else "leave it out"
            raise InputError(f"method '{name_of(method)}' got sparsity={sparsity}, but takes none: {instead}")
        return 0.0
    if sparsity is None:
        raise InputError(f"method '{name_of(method)}' got neither sparsity= nor masks=: give a sparsity, e.g. 0.9")
    return check_sparsity(sparsity)


def name_of(method: Method) -> str:
    """Return the name that a method is listed under, or its class's for one that is not."""
    return name_of_kind(type(method))


def name_of_kind(kind: type) -> str:
    """Return the name that a method's class is listed under, or its own."""
    return next((name for name, listed in METHODS.items() if listed is kind), kind.__name__.lower())
