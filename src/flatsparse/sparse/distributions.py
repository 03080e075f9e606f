"""Distributions: how a budget of active weights is allocated to layers. Every layer that has weights keeps at least one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping

from torch import Tensor

from flatsparse.common.errors import InputError
from flatsparse.sparse.topk import apportion, top_counts

Distribution = Callable[[Mapping[str, Tensor], int], dict[str, int]]  # scores, total -> active weights a layer


def uniform(scores: Mapping[str, Tensor], total: int) -> dict[str, int]:
    """The same sparsity in every layer."""
    return _share(scores, total, lambda s: s.numel())


def erdos_renyi(scores: Mapping[str, Tensor], total: int) -> dict[str, int]:
    """Density in proportion to ``(n_in + n_out)/(n_in·n_out)`` (SET: Mocanu et al. 2018, eq. 3), capped at dense.

    A convolution counts its channels only; the kernel's positions all get the channels' density. Of a layer with groups
    these are the outputs and the inputs of one group; it matters not which of them a layer stores first.
    """
    return _share(scores, total, lambda s: math.prod(s.shape[2:]) * (s.shape[0] + s.shape[1]))


def erdos_renyi_kernel(scores: Mapping[str, Tensor], total: int) -> dict[str, int]:
    """Density in proportion to the sum of a weight's dimensions over their product (ERK: Evci et al. 2020, sec. 3).

    Layers that would be more than dense are dense and the rest is allocated anew. Other than the original, the
    total is met exactly, where it rounds each layer down.
    """
    return _share(scores, total, lambda s: sum(s.shape))


def global_ranking(scores: Mapping[str, Tensor], total: int) -> dict[str, int]:
    """Counts of the ``total`` largest scores of the whole net, by layer (global pruning).

    A layer that would be emptied keeps one weight, which the others make room for, and a warning names it.
    """
    caps = [s.numel() for s in scores.values()]
    check_budget(total, sum(caps), sum(map(bool, caps)))
    counts = top_counts(list(scores.values()), total)
    if emptied := [name for name, count, cap in zip(scores, counts, caps, strict=True) if count == 0 < cap]:
        warnings.warn(
            f"the largest scores leave {len(emptied)} layers without an active weight; each keeps its best one:"
            f" {', '.join(emptied)}",
            stacklevel=2,
        )
    return dict(zip(scores, apportion(total, counts, caps, [min(1, cap) for cap in caps]), strict=True))


DISTRIBUTIONS: dict[str, Distribution] = {
    "uniform": uniform,
    "er": erdos_renyi,
    "erk": erdos_renyi_kernel,
    "global": global_ranking,
}


def _share(scores: Mapping[str, Tensor], total: int, weight: Callable[[Tensor], float]) -> dict[str, int]:
    caps = [s.numel() for s in scores.values()]
    check_budget(total, sum(caps), sum(map(bool, caps)))
    weights = [weight(s) for s in scores.values()]
    return dict(zip(scores, apportion(total, weights, caps, [min(1, cap) for cap in caps]), strict=True))


def check_budget(total: int, whole: int, layers: int, each: int = 1) -> None:
    """Raise InputError when a budget cannot leave every layer its least number of weights."""
    if total < layers * each:
        raise InputError(
            f"a sparsity of {1 - total / whole:.6g} leaves {total} active weights for {layers} layers:"
            f" give at most {max(0, 1 - layers * each / whole):.6g}, so that every layer keeps {'one' if each == 1 else each}"
        )
