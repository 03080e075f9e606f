"""What a device computes in."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

CPUINFO = Path("/proc/cpuinfo")
UNITS = {"amx_bf16", "avx512_bf16", "bf16"}  # the last as ARM calls it


def has_bf16(device: str) -> bool:
    """Whether a device multiplies in bf16 itself, and does not only pretend to."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and _processor_has_bf16()


@functools.cache
def _processor_has_bf16() -> bool:
    try:
        return not UNITS.isdisjoint(CPUINFO.read_text(encoding="utf-8", errors="replace").split())
    except OSError:  # no Linux: what torch says, which counts processors that do it in several steps
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
