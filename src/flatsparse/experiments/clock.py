"""The clock of all measurements."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def clock(device: str = "cpu") -> float:
    """The time in seconds, from no fixed point, once the device has finished all its work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(work: Callable[[], object], device: str = "cpu") -> float:
    """The seconds that a call takes."""
    began = clock(device)
    work()
    return clock(device) - began
