"""Copies of a sparse model, such as moving averages of its weights, and the masks that they do not know of."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from flatsparse.common.distributed import local_tensor
from flatsparse.common.errors import InputError
from flatsparse.common.names import plain_names
from flatsparse.sparse.masked_weight import MaskedWeight


@torch.no_grad()
def zero_copy(copy: nn.Module, masked: Iterable[MaskedWeight]) -> None:
    """Set a model's weights to 0 outside the masks of the parameters of the same names.

    Raises: InputError when it lacks one of them, or has it in another shape; nothing is written then.
    """
    named = dict(copy.named_parameters(remove_duplicate=False))
    own = dict(zip(plain_names(list(named)), named.values(), strict=True))
    pairs = [(w, own.get(w.name)) for w in masked]
    for w, p in pairs:
        if p is None or p.shape != w.mask.shape:
            got = "has none" if p is None else f"has it in the shape {tuple(p.shape)}"
            raise InputError(
                f"'{w.name}' has a mask of shape {tuple(w.mask.shape)}, and this {type(copy).__name__} {got}: give a copy of"
                " the model, or what holds one as its 'module'"
            )
    for w, p in pairs:
        assert p is not None
        values = local_tensor(p.detach())
        values.masked_fill_(~local_tensor(w.mask).to(values.device), 0)


def count_outside(masked: Iterable[MaskedWeight]) -> int:
    """Return the number of weights, of this process, that are not zero outside their masks."""
    whole = [w for w in masked if not w.is_packed]
    counts = [(local_tensor(w.weight.detach()).ne(0) & ~local_tensor(w.mask)).sum() for w in whole]
    return int(sum(counts)) if counts else 0
