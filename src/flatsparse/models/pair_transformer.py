"""A small Transformer for synthetic sentence pairs."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Causal self-attention and a two-layer net, each added to its input after a norm (pre-norm: Xiong et al. 2020).

    Attention is written out, so that each matrix is a layer with a name for masks and FLOP counts, and so that it has second
    derivatives.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.net = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.net(self.norm2(x))

    def attend(self, x: Tensor) -> Tensor:
        query, key, value = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(later, float("-inf")).softmax(-1)
        return self.out((weights @ value).transpose(1, 2).flatten(-2))


class PairTransformer(nn.Module):
    """Blocks over token and position embeddings, without dropout.

    Input (N, length) of token numbers, output (N, length, vocabulary) of logits.
    """

    def __init__(self, vocabulary: int, width: int, depth: int, heads: int, length: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.output = nn.LayerNorm(width), nn.Linear(width, vocabulary)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        return self.output(self.norm(self.blocks(x)))


def pair_transformer(num_classes: int = 17, in_channels: int = 12) -> PairTransformer:
    """Two causal blocks of width 64 (ours), over a vocabulary of ``num_classes`` and sequences of ``in_channels`` tokens."""
    return PairTransformer(num_classes, width=64, depth=2, heads=4, length=in_channels)
