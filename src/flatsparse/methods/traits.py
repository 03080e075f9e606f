"""The traits of a method: its declarations about itself, for the code that runs it, counts its cost or describes it.

A method declares a trait by a class attribute of its name, which is no field of the dataclass; what it does not declare
has the default. Everything else is in its options (``options_of``) and in its plan, such as its rounds.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from flatsparse.sparse.plan import Method

Scoring = Literal["none", "batch", "batches"]


@dataclass(frozen=True)
class Traits:
    """The traits of a method.

    Attributes:
        takes_sparsity: it is given the sparsity to end at. One that is not, such as a method that is given a fraction of
            channels to remove, plans for sparsity 0.
        default_sparsity: the sparsity of a run from the command line that names none.
        scoring: the data that it scores weights on before training, given as its options ``batches`` and ``loss_fn``:
            nothing, one ``batch`` of the training data, or all its ``batches``.
    """

    takes_sparsity: bool = True
    default_sparsity: float = 0.9
    scoring: Scoring = "none"

    def sparsity_or_default(self, given: float | None) -> float | None:
        """Return the sparsity that was given, or else the default; None for a method that takes none."""
        return self.default_sparsity if given is None and self.takes_sparsity else given


def traits_of(method: Method | type[Method]) -> Traits:
    """Return the traits that a method or its class declares."""
    kind = method if isinstance(method, type) else type(method)
    names = (field.name for field in dataclasses.fields(Traits))
    return Traits(**{name: getattr(kind, name) for name in names if hasattr(kind, name)})


def options_of(method: Method | type[Method]) -> tuple[str, ...]:
    """Return the names of the options that a method or its class has."""
    declared: Any = method
    return tuple(field.name for field in dataclasses.fields(declared)) if dataclasses.is_dataclass(declared) else ()
