"""Small convolutional nets of random structure: what channels can meet, in any order."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RandomNet(nn.Module):
    """A stem, then random blocks: plain, residual, depthwise, concatenated or pooled; then a classifier.

    Input (N, 2, 8, 8), output (N, 3).
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        width = draw.choice([3, 4, 6])
        self.stem = self._unit(draw, 2, width)
        self.kinds: list[str] = []
        self.blocks = nn.ModuleList()
        for _ in range(draw.randint(1, 4)):
            kind = draw.choice(["plain", "residual", "gate", "depthwise", "cat", "pool"])
            self.kinds.append(kind)
            if kind == "plain":
                outputs = draw.choice([3, 5, 6])
                self.blocks.append(self._unit(draw, width, outputs))
                width = outputs
            elif kind == "depthwise":
                self.blocks.append(self._unit(draw, width, width, groups=width))
            elif kind == "cat":
                outputs = draw.choice([2, 4])
                self.blocks.append(self._unit(draw, width, outputs))
                width += outputs
            elif kind == "pool":
                self.blocks.append(draw.choice([nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1), nn.Identity()]))
            else:
                inner = draw.choice([3, 7])
                self.blocks.append(nn.Sequential(self._unit(draw, width, inner), self._unit(draw, inner, width)))
        self.end = draw.choice(["mean", "flatten", "view", "adaptive"])
        self.pool = nn.AdaptiveAvgPool2d(2)
        features = width if self.end == "mean" else 4 * width
        hidden = 5
        self.hidden = nn.Linear(features, hidden)
        self.norm = nn.BatchNorm1d(hidden) if draw.random() < 0.5 else nn.Identity()
        self.classifier = nn.Linear(hidden, 3)
        source = torch.Generator().manual_seed(seed)
        with torch.no_grad():  # batch norms as training leaves them
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    for tensor in (module.weight, module.bias, module.running_mean):
                        tensor.copy_(torch.randn(tensor.shape, generator=source))
                    module.running_var.copy_(torch.rand(module.running_var.shape, generator=source) + 0.5)

    @staticmethod
    def _unit(draw: random.Random, inputs: int, outputs: int, groups: int = 1) -> nn.Sequential:
        padding = draw.choice([0, 1])
        conv = nn.Conv2d(inputs, outputs, 2 * padding + 1, padding=padding, groups=groups, bias=draw.random() < 0.5)
        norm = nn.BatchNorm2d(outputs) if draw.random() < 0.7 else nn.Identity()
        return nn.Sequential(conv, norm, draw.choice([nn.ReLU(), nn.ReLU6(), nn.Hardswish(), nn.Identity()]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for kind, block in zip(self.kinds, self.blocks, strict=True):
            y = block(x)
            if kind == "residual":
                x = F.relu(x + y)
            elif kind == "gate":
                x = x * torch.sigmoid(y)
            elif kind == "cat":
                x = torch.cat([x, y], dim=1)
            else:
                x = y
        if self.end == "mean":
            x = x.mean(dim=(2, 3))
        else:
            x = self.pool(x)
            x = x.view(x.size(0), -1) if self.end == "view" else torch.flatten(x, 1)
        return self.classifier(F.relu(self.norm(self.hidden(x))))
