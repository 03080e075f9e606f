"""What makes imports cheap."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

import torch  # noqa: F401  # before: its own import leaves garbage, and is slower without collections


@contextlib.contextmanager
def no_collections() -> Iterator[None]:
    """A context without garbage collections, for imports: they leave no garbage, and a collection walks all of torch's objects.

    Ours, because that walk takes as long as all of our own imports.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
