"""The devices that runs are computed on."""

from __future__ import annotations

import re

import torch

from flatsparse.common.errors import InputError


def usable_device(name: str) -> str:
    """Return the name of a usable device; of ``auto``, the one it stands for. Raises InputError for one that cannot be used."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as problem:
        reason = re.split(r"[.:] ", str(problem).splitlines()[0])[0].rstrip(".")
        raise InputError(f"--device {name} cannot be used ({reason}): give cpu, cuda or auto") from None
    return name
