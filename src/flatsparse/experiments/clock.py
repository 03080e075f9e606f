"""The clock of all measurements."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

LEAST = 1e-9  # seconds between two times
_last, _offset = -math.inf, 0.0


def clock(device: str = "cpu") -> float:
    """The time in seconds, from no fixed point, once the device has finished all its work.

    Each time is later than the one before, also where the system's clock stands still for a moment or is set back.
    """
    global _last, _offset
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    now = time.perf_counter()
    if now + _offset <= _last:
        _offset = math.nextafter(_last, math.inf) + LEAST - now
    _last = now + _offset
    return _last


def seconds(work: Callable[[], object], device: str = "cpu") -> float:
    """The seconds that a call takes."""
    began = clock(device)
    work()
    return clock(device) - began
