"""The layout of activations in which the images of a batch lie side by side: [blocks][rows][channels][columns][LANES]."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

LANES = 16  # as in conv.c


@dataclass(frozen=True)
class Layout:
    """The shape of one activation, with a border of ``pad`` pixels around every image.

    Attributes:
        images: the size of the batch; it is filled up to whole blocks of ``LANES``.
        channels, rows, columns: as in an (N, C, H, W) tensor.
        pad: the width of the border.
    """

    images: int
    channels: int
    rows: int
    columns: int
    pad: int = 0

    @cached_property
    def blocks(self) -> int:
        return -(-self.images // LANES)

    @cached_property
    def shape(self) -> tuple[int, int, int, int, int]:
        return (self.blocks, self.rows + 2 * self.pad, self.channels, self.columns + 2 * self.pad, LANES)

    @cached_property
    def strides(self) -> tuple[int, int, int]:
        """Floats from one block, row and channel to the next."""
        channel = (self.columns + 2 * self.pad) * LANES
        row = self.channels * channel
        return (self.rows + 2 * self.pad) * row, row, channel

    def offset(self, row: int, column: int) -> int:
        """The floats before a pixel of the first channel; the border has negative rows and columns."""
        return (row + self.pad) * self.strides[1] + (column + self.pad) * LANES

    def empty(self) -> Tensor:
        """Return room for such an activation."""
        return empty(*self.shape)


def empty(*shape: int) -> Tensor:
    """Return floats of the kernels, whatever torch's defaults are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def zeros(*shape: int) -> Tensor:
    """Return zeros of the kernels."""
    return torch.zeros(shape, dtype=torch.float32, device="cpu")
