"""A decoder-only Transformer that predicts the next token."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CausalTransformer(nn.Module):
    """Pre-norm blocks with causal attention, learnt positions and an output layer of its own (after Radford et al. 2019).

    Without dropout. Input (N, length) of token numbers, output (N, length, vocabulary).
    """

    def __init__(self, vocabulary: int, width: int, depth: int, heads: int, length: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, depth, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.output = nn.Linear(width, vocabulary, bias=False)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        later = nn.Transformer.generate_square_subsequent_mask(length, device=tokens.device)
        x = self.tokens(tokens) + self.positions(torch.arange(length, device=tokens.device))
        return self.output(self.blocks(x, mask=later, is_causal=True))


def causal_transformer(
    vocabulary: int = 10_752, width: int = 512, depth: int = 6, heads: int = 8, length: int = 256
) -> CausalTransformer:
    """Six blocks of width 512 (ours, sized for measuring): 30,056,448 parameters, a third of them in the two token layers."""
    return CausalTransformer(vocabulary, width, depth, heads, length)
