"""Vision Transformers (Dosovitskiy et al. 2021), of the widths of Touvron et al. (2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flatsparse.common.errors import InputError
from flatsparse.models.attention import PreNormBlock

DEPTH = 12


class VisionTransformer(nn.Module):
    """A linear layer over patches, a class token, learned positions and pre-norm blocks, all of one width.

    Heads are 64 wide. Input (N, in_channels, image_size, image_size), output (N, num_classes).

    Args:
        num_classes, in_channels: of the data.
        width: of a token, a multiple of 64.
        image_size: height and width of an image, of which there is one position for each patch.
        patch: height and width of a patch, which divides them.
        dropout: probability of zeroing an entry of what a layer adds, and of the embedded tokens.

    Raises: InputError where patches do not tile an image.
    """

    def __init__(
        self, num_classes: int, in_channels: int, width: int, *, image_size: int, patch: int, dropout: float
    ) -> None:
        super().__init__()
        if patch < 1 or image_size < patch or image_size % patch:
            raise InputError(f"patches of {patch} pixels do not tile images of {image_size}: give a divisor")
        self.patches = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 1 + (image_size // patch) ** 2, width))
        self.dropout = nn.Dropout(dropout)
        blocks = [
            PreNormBlock(width, width // 64, 4 * width, nn.GELU(), dropout=dropout, eps=1e-6, causal=False)
            for _ in range(DEPTH)
        ]
        self.blocks, self.norm = nn.Sequential(*blocks), nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes)
        for weight in (self.token, self.positions):
            nn.init.trunc_normal_(weight, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(self.dropout(x)))[:, 0])


def vit_tiny(
    num_classes: int = 1000, in_channels: int = 3, *, image_size: int = 224, patch: int = 16, dropout: float = 0.0
) -> VisionTransformer:
    """ViT-Ti/16, three heads: 5,717,416 parameters for a thousand classes.

    >>> vit_tiny(10, image_size=64, patch=8).positions.shape
    torch.Size([1, 65, 192])
    """
    return VisionTransformer(num_classes, in_channels, 192, image_size=image_size, patch=patch, dropout=dropout)


def vit_small(
    num_classes: int = 1000, in_channels: int = 3, *, image_size: int = 224, patch: int = 16, dropout: float = 0.0
) -> VisionTransformer:
    """ViT-S/16, six heads: 22,050,664 parameters for a thousand classes."""
    return VisionTransformer(num_classes, in_channels, 384, image_size=image_size, patch=patch, dropout=dropout)


def vit_tiny_32(num_classes: int = 10, in_channels: int = 3) -> VisionTransformer:
    """ViT-Ti/4 for 32x32 images (ours): 64 patches of 4x4 pixels."""
    return vit_tiny(num_classes, in_channels, image_size=32, patch=4)


def vit_tiny_64(num_classes: int = 10, in_channels: int = 3) -> VisionTransformer:
    """ViT-Ti/8 for 64x64 images (ours): 64 patches of 8x8 pixels."""
    return vit_tiny(num_classes, in_channels, image_size=64, patch=8)
