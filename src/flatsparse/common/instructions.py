"""The choice of the instruction set that a library of C runs on; common/c/sets.h says what it is in C."""

from __future__ import annotations

import ctypes

from flatsparse.common.errors import InputError

SETS = ("plain", "avx2", "avx512")  # in the order of sets.h


def choose(loaded: ctypes.CDLL, instructions: str | None) -> str:
    """Make a library use an instruction set, or the best when None. Returns its name.

    Raises: InputError for a name that is none, and for a set that this processor has not.
    """
    if instructions is not None and instructions not in SETS:
        raise InputError(f"no instruction set '{instructions}': take one of {', '.join(SETS)}")
    used = SETS[loaded.flatsparse_use(SETS.index(instructions) if instructions else -1)]
    if instructions not in (None, used):
        raise InputError(f"this processor has no {instructions}: leave FLATSPARSE_INSTRUCTIONS out, or take {used}")
    return used
