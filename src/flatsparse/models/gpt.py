"""Decoder-only Transformers that predict the next token, in the layout of GPT-2 (Radford et al. 2019)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatsparse.models.attention import PreNormBlock


class GPT(nn.Module):
    """Token and learned position embeddings, causal pre-norm blocks, a norm, and the token embeddings as output layer.

    Input (N, length) of token numbers, at most ``length`` of them; output (N, length, vocabulary) of logits. Weights start
    as in the paper: those that write into the residual stream are smaller by the root of their number.
    """

    def __init__(self, vocabulary: int, length: int, *, width: int, depth: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.dropout = nn.Dropout(dropout)
        gelu = nn.GELU(approximate="tanh")
        blocks = [
            PreNormBlock(width, heads, 4 * width, gelu, dropout=dropout, eps=1e-5, causal=True) for _ in range(depth)
        ]
        self.blocks, self.norm = nn.Sequential(*blocks), nn.LayerNorm(width)
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                residual = name.endswith(("attention.out", "net.2"))
                nn.init.normal_(module.weight, std=0.02 / (2 * depth) ** 0.5 if residual else 0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        return F.linear(self.norm(self.blocks(self.dropout(x))), self.tokens.weight)


def gpt2(vocabulary: int = 50_257, length: int = 1024, *, dropout: float = 0.1) -> GPT:
    """The smallest GPT-2, twelve blocks of width 768: 124,439,808 parameters."""
    return GPT(vocabulary, length, width=768, depth=12, heads=12, dropout=dropout)


def gpt2_tiny(vocabulary: int = 2048, length: int = 128, *, dropout: float = 0.0) -> GPT:
    """Four blocks of width 128 in the layout of GPT-2 (ours, for a processor)."""
    return GPT(vocabulary, length, width=128, depth=4, heads=4, dropout=dropout)
