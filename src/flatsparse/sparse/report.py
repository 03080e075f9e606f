"""The masks of a net in numbers, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class LayerReport:
    """The mask of a layer in numbers."""

    name: str
    shape: tuple[int, ...]
    active: int
    total: int

    @property
    def sparsity(self) -> float:
        return 1 - self.active / self.total


@dataclass(frozen=True)
class Report:
    """The masks of a net in numbers; prints as a table."""

    layers: tuple[LayerReport, ...]
    overall_total: int

    @property
    def active(self) -> int:
        return sum(layer.active for layer in self.layers)

    @property
    def total(self) -> int:
        return sum(layer.total for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """The sparsity over the prunable weights."""
        return 1 - self.active / self.total

    @property
    def overall_sparsity(self) -> float:
        """The sparsity over the weights of all matrices, chosen or not."""
        return (self.total - self.active) / self.overall_total

    def __iter__(self) -> Iterator[LayerReport]:
        return iter(self.layers)

    def __str__(self) -> str:
        width = max(len(layer.name) for layer in self.layers)
        rows = [
            f"{r.name:{width}}  {'x'.join(map(str, r.shape)):>14}  {r.active:>9} active  {r.sparsity:8.2%} sparse"
            for r in self
        ]
        sums = f"{self.active} of {self.total} active: sparsity {self.sparsity:.4%} of the prunable weights"
        return "\n".join([*rows, f"{sums}, {self.overall_sparsity:.4%} of all matrices"])
