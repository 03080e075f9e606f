"""The memory of a layer's gradient, used again at the next step: fresh pages cost as much as the sparse products."""

from __future__ import annotations

import torch
from torch import Tensor


class GradientMemory:
    """The memory of the last gradient that was handed out, for the next one, once nobody else holds it."""

    def __init__(self) -> None:
        self._kept: Tensor | None = None
        self._own_uses: int | None = None

    def empty(self, rows: int, columns: int) -> Tensor:
        """Return a tensor (rows, columns), float32, on the CPU, of any content."""
        kept = self._kept
        if kept is None or kept.shape != (rows, columns) or self._own_uses is None or _uses(kept) != self._own_uses:
            kept = self._kept = torch.empty(rows, columns, dtype=torch.float32, device="cpu")
            self._own_uses = _uses(kept)
        return kept.detach()

    def release(self) -> None:
        """Let go of the memory, where no such gradient is wanted for now."""
        self._kept = None


def _uses(tensor: Tensor) -> int | None:
    """The number of tensors and views on a tensor's memory, more by a constant; None where torch does not tell."""
    count = getattr(torch._C, "_storage_Use_Count", None)
    return None if count is None else count(tensor.untyped_storage()._cdata)
