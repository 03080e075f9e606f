"""Multi-head attention whose matrices are linear layers, and a Transformer block of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KeyValueCache:
    """The keys and values of one attention layer at the positions so far, (N, heads, positions, width of a head)."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def __len__(self) -> int:
        return 0 if self.keys is None else self.keys.shape[2]

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add further positions, and return the keys and values of all."""
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)
        self.keys, self.values = keys, values
        return keys, values

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order; a row may come more than once."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[rows], self.values[rows]


class Attention(nn.Module):
    """Scaled dot-product attention of several heads (Vaswani et al. 2017, sec. 3.2.2).

    The four matrices are linear layers of their own, so that masks and FLOP counts know each by its name.

    Args:
        width: of inputs and outputs, a multiple of ``heads``.
        heads: that attend side by side.
        bias: of the four linear layers.
    """

    def __init__(self, width: int, heads: int, *, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=bias) for _ in range(4))

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Return what each position reads, (N, length, width).

        Args:
            x: positions that read, (N, length, width).
            memory: positions that are read, (N, positions, width). By default those of ``x``.
            mask: true where a position may be read, broadcast to (N, heads, length, positions).
            causal: no position reads a later one.
            cache: of earlier calls. Those of ``x`` are added to it; a memory is projected only in the first call.
        """
        query = self._split(self.query(x))
        past = 0
        if cache is None:
            keys, values = self._project(x if memory is None else memory)
        elif memory is None:
            past = len(cache)
            keys, values = cache.extend(*self._project(x))
        elif cache.keys is None or cache.values is None:
            keys, values = cache.extend(*self._project(memory))
        else:
            keys, values = cache.keys, cache.values
        if causal and past:  # the kernels' own causal mask is for as many queries as keys
            shape = query.shape[-2], keys.shape[-2]
            mask = torch.ones(shape, dtype=torch.bool, device=x.device).tril(past)
        heads = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, is_causal=causal and not past)
        return self.out(heads.transpose(1, 2).flatten(-2))

    def _project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        return self._split(self.key(memory)), self._split(self.value(memory))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class PreNormBlock(nn.Module):
    """Self-attention and a two-layer net, each added to its input after a norm (pre-norm: Xiong et al. 2020)."""

    def __init__(
        self, width: int, heads: int, hidden: int, activation: nn.Module, *, dropout: float, eps: float, causal: bool
    ) -> None:
        super().__init__()
        self.causal = causal
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.attention = Attention(width, heads)
        self.net = nn.Sequential(nn.Linear(width, hidden), activation, nn.Linear(hidden, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), causal=self.causal))
        return x + self.dropout(self.net(self.norm2(x)))
