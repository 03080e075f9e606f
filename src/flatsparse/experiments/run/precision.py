"""The precision that a run computes in."""

from __future__ import annotations

import contextlib
import functools
import warnings
from pathlib import Path
from typing import Any

import torch

from flatsparse.experiments.run.config import ResolvedRun

CPUINFO = Path("/proc/cpuinfo")
UNITS = {"amx_bf16", "avx512_bf16", "bf16"}  # the last as ARM calls it


def autocast(run: ResolvedRun) -> contextlib.AbstractContextManager[Any]:
    """Return the context of a run's forward passes."""
    if run.runtime.precision == "bf16":
        return torch.autocast(torch.device(run.runtime.device).type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def warn_of_slow_bf16(run: ResolvedRun) -> None:
    """Warn when a run asks for bf16 on a device that only emulates it."""
    if run.runtime.precision == "bf16" and not has_bf16(run.runtime.device):
        warnings.warn(
            "--precision bf16 on a device without units for it, which takes several times as long as float32: leave it out",
            stacklevel=3,
        )


def has_bf16(device: str) -> bool:
    """Return if a device multiplies in bf16 in hardware, without emulating it."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and _processor_has_bf16()


@functools.cache
def _processor_has_bf16() -> bool:
    try:
        return not UNITS.isdisjoint(CPUINFO.read_text(encoding="utf-8", errors="replace").split())
    except OSError:  # no Linux: what torch says, which counts processors that do it in several steps
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
