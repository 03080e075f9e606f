"""Masks for weights that were loaded without any: those of another step of the same run, where masks move."""

from __future__ import annotations

import torch
from torch import Tensor

from flatsparse.common.distributed import full_tensor
from flatsparse.sparse.masked_weight import MaskedWeight
from flatsparse.sparse.pattern import Pattern


def mask_around(w: MaskedWeight, pattern: Pattern) -> Tensor | None:
    """Return a mask that is as dense as a weight's own, holds all of its nonzero entries and keeps to a pattern.

    Ours, because trainers load the weights of their best step and no masks, and the masks have moved since. What nonzero
    entries leave free goes to entries of the weight's own mask, for some active weights are zero: those that have just grown.

    Returns: bool, the whole weight's shape; None where there is no such mask, as for a dense weight. All processes must call it.

    >>> from flatsparse.sparse.pattern import UNSTRUCTURED
    >>> w = MaskedWeight("weight", torch.nn.Parameter(torch.tensor([[1.0, 0.0], [2.0, 0.0]])), 0)
    >>> _ = w.set_mask(torch.tensor([[False, True], [True, True]]))
    >>> mask_around(w, UNSTRUCTURED)
    tensor([[ True,  True],
            [ True, False]])
    """
    nonzero, own = full_tensor(w.weight.detach().ne(0)), full_tensor(w.mask)
    if int(nonzero.sum()) > w.active:
        return None
    first = 2.0 * pattern.size  # more than all of a block that has but entries of the mask
    scores = torch.where(nonzero, first, own.to(nonzero.device, torch.float32))
    mask = pattern.best(pattern.ranked(scores, w.name, w.inputs_first), w.active, w.inputs_first)
    return None if bool((nonzero & ~mask).any()) else mask
