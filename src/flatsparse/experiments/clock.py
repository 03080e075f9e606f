"""The clock of all measurements."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

_last = 0.0


def clock(device: str = "cpu") -> float:
    """The time in seconds, from no fixed point, once the device has finished all its work.

    Each time is later than the one before, also where the system's clock stands still for a moment or is set back.
    """
    global _last
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    _last = max(time.perf_counter(), math.nextafter(_last, math.inf) + 1e-9)
    return _last


def seconds(work: Callable[[], object], device: str = "cpu") -> float:
    """The seconds that a call takes."""
    began = clock(device)
    work()
    return clock(device) - began
