"""Which networks compute rightly in channels-last on a CPU."""

from __future__ import annotations

from torch import nn

BLOCK = 16  # input channels that oneDNN takes at once, at most (8 where the processor has AVX2 and not AVX-512)


def unsafe_in_channels_last(model: nn.Module) -> str | None:
    """Return the name of a convolution whose gradient in channels-last writes past its memory on CPUs; None without any.

    Of 1x1 convolutions with a stride and fewer input channels than a block has, oneDNN's gradient of the weights is wrong, hangs
    or ends the process (oneDNN issue 6035; torch 2.13 has it).

    >>> unsafe_in_channels_last(nn.Sequential(nn.Conv2d(5, 10, 1, stride=2)))
    '0'
    """
    convolutions = ((name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d))
    return next((name for name, m in convolutions if _has_stride_1x1(m) and m.in_channels // m.groups < BLOCK), None)


def _has_stride_1x1(layer: nn.Conv2d) -> bool:
    return layer.kernel_size == (1, 1) and layer.stride != (1, 1)
