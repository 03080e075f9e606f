"""Names of a model's parameters, free of the prefixes of wrappers."""

from __future__ import annotations

from collections.abc import Sequence


def plain_names(names: Sequence[str]) -> list[str]:
    """A model's names without the prefixes of ``torch.compile``, Lightning Fabric and data-parallel wrappers.

    A ``module.`` that only some names have is the model's own.
    """
    names = [name.replace("_orig_mod.", "").replace("_forward_module.", "") for name in names]
    while names and all(name.startswith("module.") for name in names):
        names = [name.removeprefix("module.") for name in names]
    return names
