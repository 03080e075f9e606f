"""Running statistics of normalization layers, which a second forward of the same batch must not update again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase


@contextmanager
def frozen_statistics(models: Sequence[nn.Module]) -> Iterator[None]:
    """A context that leaves running statistics of normalization layers as they were when it began.

    Args:
        models: whose layers; where there are none, those that are called inside the context.
    """
    before: dict[torch.Tensor, torch.Tensor] = {}

    def keep(module: nn.Module, *_: Any) -> None:
        if isinstance(module, _NormBase) and module.training:
            for buffer in module.buffers(recurse=False):
                if buffer not in before:
                    before[buffer] = buffer.clone()

    for model in models:
        for module in model.modules():
            keep(module)
    hook = None if models else nn.modules.module.register_module_forward_pre_hook(keep)
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()
        with torch.no_grad():
            for buffer, old in before.items():
                buffer.copy_(old)
