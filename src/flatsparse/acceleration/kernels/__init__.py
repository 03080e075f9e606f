"""The compiled kernels of accelerated layers: plain C, called through ``ctypes``, for the best instruction set at hand.

Every C file beside this one belongs to the library, with those of ``common/c``; by ``flags.txt`` products are added without
being rounded, as dense kernels do. ``FLATSPARSE_INSTRUCTIONS`` (``avx512``, ``avx2`` or ``plain``) and ``use`` choose an
instruction set, for tests and measurements.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flatsparse.common.compiled import Library
from flatsparse.common.instructions import SETS, choose

__all__ = ["FUNCTIONS", "LIBRARY", "SETS", "library", "pointer", "threads", "use"]

_N, _P, _T = ctypes.c_int64, ctypes.c_void_p, ctypes.c_int  # a size, an array, a number of threads
FUNCTIONS: dict[str, list[Any]] = {
    "flatsparse_linear_forward": [*[_N] * 3, *[_P] * 7, _T],
    "flatsparse_linear_backward": [*[_N] * 3, *[_P] * 11, _T],
}


def _bind(loaded: ctypes.CDLL) -> None:
    for name, types in FUNCTIONS.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = types, None


LIBRARY = Library(
    folder=Path(__file__).parent,
    bind=_bind,
    what="the library of sparse kernels",
    instead="leave acceleration out",
)


@functools.cache
def library() -> ctypes.CDLL:
    """The kernels, loaded, with the best instruction set in use or the one that the environment asks for.

    Raises: InputError when they cannot be built or loaded, or the processor has no such set.
    """
    return LIBRARY.load()


def use(instructions: str | None) -> str:
    """Use an instruction set, or the best when None. Returns its name.

    Raises: InputError for a name that is none, and for a set that this processor has not.
    """
    return choose(library(), instructions)


def pointer(tensor: Tensor | None) -> int | None:
    """The address of a contiguous tensor's entries, null for None."""
    return None if tensor is None else tensor.data_ptr()


def threads() -> int:
    """The number of threads that kernels run on: torch's."""
    return torch.get_num_threads()
