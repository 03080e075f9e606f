"""The sparse copy of a weight and its dual in ADMM, the alternating direction method of multipliers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flatsparse.common.distributed import full_tensor


@dataclass(frozen=True)
class Split:
    """The sparse copy z of a weight w and their scaled dual u (Boyd et al. 2011, sec. 3.1.1), in one tensor.

    A projection keeps some entries of ``s = w + u`` as z, and the others are the new ``u = s − z``: of each entry one of
    the two is zero. So their difference and where z is kept say both, at five bytes a weight in place of eight.

    Attributes:
        difference: z − u, the shape of the weight.
        kept: where z is kept, bool.

    >>> split = Split.of(torch.tensor([3.0, 1.0]), torch.tensor([True, False]))  # u begins as 0
    >>> split = split.projected(torch.tensor([4.0, 0.5]), torch.tensor([True, False]))
    >>> split.z, split.u
    (tensor([4., 0.]), tensor([0.0000, 0.5000]))
    """

    difference: Tensor
    kept: Tensor

    @classmethod
    def of(cls, weight: Tensor, kept: Tensor) -> Split:
        """Return the first one: z is the weight where it is kept, and u is 0."""
        return cls(torch.where(kept, weight, torch.zeros_like(weight)), kept)

    @property
    def z(self) -> Tensor:
        """The sparse copy."""
        return torch.where(self.kept, self.difference, torch.zeros_like(self.difference))

    @property
    def u(self) -> Tensor:
        """The scaled dual: the sum of what projections have left of the weight."""
        return torch.where(self.kept, torch.zeros_like(self.difference), -self.difference)

    def projected(self, weight: Tensor, kept: Tensor) -> Split:
        """Return the next one: z is ``w + u`` where it is kept, and u is ``w + u − z``."""
        total = weight + self.u
        return Split(torch.where(kept, total, -total), kept)

    def gathered(self) -> Split:
        """Return itself, or of a sharded weight a whole copy; all processes must call this."""
        return Split(full_tensor(self.difference), full_tensor(self.kept))

    def on(self, device: torch.device) -> Split:
        """Return itself on a device."""
        return Split(self.difference.to(device), self.kept.to(device))
