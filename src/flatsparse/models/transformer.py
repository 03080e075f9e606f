"""The encoder-decoder Transformer (Vaswani et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatsparse.models.attention import Attention, KeyValueCache

PADDING = 0  # the token that fills up short sentences


@dataclass(frozen=True)
class Memory:
    """An encoded source.

    Attributes:
        states: (N, source length, width).
        mask: true where a source token is no padding, (N, 1, 1, source length).
    """

    states: Tensor
    mask: Tensor

    def select(self, rows: Tensor) -> Memory:
        """Return these rows of the batch, in this order; a row may come more than once."""
        return Memory(self.states[rows], self.mask[rows])


class DecoderCache:
    """The keys and values of every attention layer of a decoder, for decoding token by token.

    >>> model = transformer_tiny(10).eval()
    >>> memory, cache = model.encode(torch.tensor([[4, 5, 2]])), DecoderCache(model)
    >>> [tuple(model.decode(torch.tensor([[token]]), memory, cache).shape) for token in (1, 7)], len(cache)
    ([(1, 1, 10), (1, 1, 10)], 2)
    """

    def __init__(self, model: Transformer) -> None:
        self.layers = [(KeyValueCache(), KeyValueCache()) for _ in model.decoder]

    def __len__(self) -> int:
        """The number of target tokens so far."""
        return len(self.layers[0][0])

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order, as a beam search does with its hypotheses."""
        for own, cross in self.layers:
            own.select(rows)
            cross.select(rows)


class Residual(nn.Module):
    """The output of a layer, after dropout, added to its input.

    The norm is of the sum or, with ``norm_first``, of the layer's input.
    """

    def __init__(self, width: int, dropout: float, norm_first: bool) -> None:
        super().__init__()
        self.norm, self.dropout, self.norm_first = nn.LayerNorm(width), nn.Dropout(dropout), norm_first

    def forward(self, x: Tensor, layer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.norm_first:
            return x + self.dropout(layer(self.norm(x)))
        return self.norm(x + self.dropout(layer(x)))


@dataclass(frozen=True)
class LayerSize:
    """The numbers that a layer of the Transformer is made of.

    Attributes:
        width: of a token.
        heads: of attention, a divisor of the width.
        hidden: units between the two matrices of the feed-forward net.
        dropout: probability of zeroing an entry of what is added to a token.
        norm_first: norms before attention and feed-forward net (Xiong et al. 2020), instead of after them.
    """

    width: int
    heads: int
    hidden: int
    dropout: float = 0.1
    norm_first: bool = False

    def attention(self) -> Attention:
        return Attention(self.width, self.heads, bias=False)

    def net(self) -> nn.Sequential:
        return nn.Sequential(nn.Linear(self.width, self.hidden), nn.ReLU(), nn.Linear(self.hidden, self.width))

    def residual(self) -> Residual:
        return Residual(self.width, self.dropout, self.norm_first)


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward net."""

    def __init__(self, size: LayerSize) -> None:
        super().__init__()
        self.attention, self.net = size.attention(), size.net()
        self.residual1, self.residual2 = size.residual(), size.residual()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.residual1(x, lambda x: self.attention(x, mask=mask))
        return self.residual2(x, self.net)


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the source and a feed-forward net."""

    def __init__(self, size: LayerSize) -> None:
        super().__init__()
        self.attention, self.cross, self.net = size.attention(), size.attention(), size.net()
        self.residual1, self.residual2, self.residual3 = size.residual(), size.residual(), size.residual()

    def forward(
        self, x: Tensor, memory: Memory, own: KeyValueCache | None = None, cross: KeyValueCache | None = None
    ) -> Tensor:
        x = self.residual1(x, lambda x: self.attention(x, causal=True, cache=own))
        x = self.residual2(x, lambda x: self.cross(x, memory.states, mask=memory.mask, cache=cross))
        return self.residual3(x, self.net)


class Transformer(nn.Module):
    """Encoder and decoder with one embedding for source, target and output.

    Matrices of attention have no bias, as in the paper's formulas. Positions are sinusoids, so that there is no longest
    sentence. Dropout is of the sums of embeddings and positions and of what each sublayer adds. Matrices start by Glorot &
    Bengio's uniform rule, embeddings with standard deviation width^-½ (ours, after the authors' code: the paper does
    not say).

    Args:
        vocabulary: the number of tokens of both languages; token 0 is padding.
        depth: layers of the encoder, and of the decoder.
        size: of a layer. With norms before its parts, one more norm follows the last layer.
    """

    def __init__(self, vocabulary: int, depth: int, size: LayerSize) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, size.width)
        self.dropout = nn.Dropout(size.dropout)
        self.encoder = nn.ModuleList(EncoderLayer(size) for _ in range(depth))
        self.decoder = nn.ModuleList(DecoderLayer(size) for _ in range(depth))
        self.encoder_norm = nn.LayerNorm(size.width) if size.norm_first else nn.Identity()
        self.decoder_norm = nn.LayerNorm(size.width) if size.norm_first else nn.Identity()
        nn.init.normal_(self.tokens.weight, std=size.width**-0.5)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Return the logits of the token after each target token, (N, target length, vocabulary).

        Args:
            source: token numbers (N, source length), at least one in a row that is no padding.
            target: token numbers (N, target length) from the first on; padding comes last.
        """
        return self.decode(target, self.encode(source))

    def encode(self, source: Tensor) -> Memory:
        """Return the encoded source, of token numbers (N, source length)."""
        mask = (source != PADDING)[:, None, None, :]
        x = self._embed(source, 0)
        for layer in self.encoder:
            x = layer(x, mask)
        return Memory(self.encoder_norm(x), mask)

    def decode(self, target: Tensor, memory: Memory, cache: DecoderCache | None = None) -> Tensor:
        """Return the logits of the token after each target token, (N, target length, vocabulary).

        Args:
            target: token numbers (N, target length). With a cache, those after the ones of earlier calls.
            memory: of ``encode``.
            cache: of earlier calls with this memory, which grows by these tokens.
        """
        x = self._embed(target, 0 if cache is None else len(cache))
        for index, layer in enumerate(self.decoder):
            x = layer(x, memory) if cache is None else layer(x, memory, *cache.layers[index])
        return F.linear(self.decoder_norm(x), self.tokens.weight)

    def _embed(self, tokens: Tensor, start: int) -> Tensor:
        width = self.tokens.embedding_dim
        positions = torch.arange(tokens.shape[1], device=tokens.device) + start
        x = self.tokens(tokens) * math.sqrt(width)
        return self.dropout(x + sinusoids(positions, width).to(x.dtype))


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Return sines in even and cosines in odd columns, (positions, width), of wavelengths from 2π to 10000·2π.

    Vaswani et al. 2017, sec. 3.5; ``width`` is even.
    """
    exponents = torch.arange(0, width, 2, device=positions.device) / width
    angles = positions[:, None] * 10_000.0**-exponents
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)


def transformer_base(vocabulary: int = 37_000, *, dropout: float = 0.1, norm_first: bool = False) -> Transformer:
    """The base Transformer, 6 + 6 layers of width 512: 63,045,632 parameters, 44,101,632 of them not embeddings."""
    return Transformer(vocabulary, 6, LayerSize(512, 8, 2048, dropout, norm_first))


def transformer_small(vocabulary: int = 8000, *, dropout: float = 0.1, norm_first: bool = False) -> Transformer:
    """A Transformer of 3 + 3 layers of width 256 (ours, for tens of thousands of sentences)."""
    return Transformer(vocabulary, 3, LayerSize(256, 4, 1024, dropout, norm_first))


def transformer_tiny(vocabulary: int = 4000, *, dropout: float = 0.1, norm_first: bool = False) -> Transformer:
    """A Transformer of 2 + 2 layers of width 128 (ours, for a processor)."""
    return Transformer(vocabulary, 2, LayerSize(128, 4, 512, dropout, norm_first))
