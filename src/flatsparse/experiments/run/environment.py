"""The software and the machine that a run was computed with."""

from __future__ import annotations

import contextlib
import os
import platform
from typing import Any

import torch

import flatsparse


def environment(device: str = "cpu", processes: int = 1) -> dict[str, Any]:
    """Return versions and machine, as ``config.json`` has them."""
    return {
        "versions": {
            "flatsparse": flatsparse.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": {"processor": processor(device), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "processes": processes,
    }


def processor(device: str) -> str:
    """Return the maker's name of the processor or accelerator."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
