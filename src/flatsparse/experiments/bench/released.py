"""S²-SAM with three buffers and a loop over parameters: the cost of the released code, for comparison."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class ThreeBuffers:
    """The step that the code released by Ji et al. (2024) intends, with its buffers and its passes over the weights.

    Each parameter has e, the last gradient, and the last weights, which only the adaptive form would read. Weights are
    moved by adding e and taking it away again. Our own wording; unlike the original it works with cleared gradients.
    """

    def __init__(self, base: Optimizer, model: nn.Module, rho: float) -> None:
        self.base, self.rho = base, rho
        self.parameters = list(model.parameters())
        self.kept: dict[Tensor, tuple[Tensor, Tensor, Tensor]] = {}
        model.register_forward_pre_hook(self.perturb)

    @torch.no_grad()
    def perturb(self, *call: Any) -> None:
        """Move to w + e before a forward."""
        if not self.kept:
            return
        norm = torch.stack([last.norm() for _, last, _ in self.kept.values()]).norm()
        for p, (e, last, _) in self.kept.items():
            e.copy_(last * (self.rho / (norm + 1e-12)))
            p.add_(e)

    @torch.no_grad()
    def step(self) -> None:
        """Move back, take the base's step, and keep this gradient for the next."""
        for p, (e, _, _) in self.kept.items():
            p.sub_(e)
        self.base.step()
        for p in self.parameters:
            if p.grad is None:
                continue
            if p not in self.kept:
                self.kept[p] = torch.zeros_like(p), torch.empty_like(p), torch.empty_like(p)
            _, last, weights = self.kept[p]
            last.copy_(p.grad)
            weights.copy_(p)

    def zero_grad(self) -> None:
        """Clear the gradients."""
        self.base.zero_grad()
