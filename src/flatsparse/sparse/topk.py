"""The primitives of every method: choose exactly k entries, and split a total exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flatsparse.common.errors import InputError
from flatsparse.sparse.threshold import Scores, count_true, kth_largest

PIECE = 1 << 18  # entries of a mask that are looked at together


def budget(total: int, sparsity: float) -> int:
    """Return the number of active weights at a sparsity, to the weight."""
    return total - round(sparsity * total)


def keep_top(scores: Tensor, k: int, among: Tensor | None = None) -> Tensor:
    """Return a mask of exactly the ``k`` largest scores.

    Ours, because a threshold misses the count when scores tie (fresh weights are all zero, so ties are common).
    Ties go to the lower index; NaN ranks lowest. Beside some masks and a few per cent of the scores it takes no memory.

    Args:
        scores: any shape, floating point.
        k: how many entries to keep, between 0 and the number of candidates.
        among: bool, the shape of ``scores``; only these entries may be kept. All of them by default.

    Returns: bool, the shape of ``scores``, with exactly ``k`` entries true.
    Raises: ValueError when ``k`` does not fit.

    >>> keep_top(torch.tensor([1.0, 3.0, 3.0, 3.0]), 2).tolist()
    [False, True, True, False]
    """
    flat = scores.detach().reshape(-1)
    only = None if among is None else among.reshape(-1)
    candidates = Scores([flat], [only])
    if only is not None and 4 * candidates.size < flat.numel():
        places = only.nonzero().squeeze(1)
        kept = torch.zeros(flat.numel(), dtype=torch.bool, device=flat.device)
        kept[places] = keep_top(flat[places], k)
        return kept.view(scores.shape)
    if not 0 <= k <= candidates.size:
        raise ValueError(f"cannot keep {k} of {candidates.size} entries")
    if k == candidates.size and only is not None:
        return only.clone().view(scores.shape)
    if k in (0, flat.numel()):
        return torch.full(scores.shape, k > 0, dtype=torch.bool, device=scores.device)
    threshold = kth_largest(candidates, k)
    above, level = flat > threshold, _on(flat, threshold)
    if only is not None:
        above.logical_and_(only)
        level.logical_and_(only)
    _keep_first_(level, k - count_true(above))
    return above.logical_or_(level).view(scores.shape)


def _keep_first_(mask: Tensor, count: int) -> None:
    """Leave only the first entries of a mask true, (n,), in place; it has at least as many."""
    for start in range(0, len(mask), PIECE):  # indices of all of them could take eight times a mask's memory
        piece = mask[start : start + PIECE]
        here = count_true(piece)
        if here > count:
            rest = piece.nonzero().squeeze(1)[count:]
            piece[rest] = False
            mask[start + PIECE :] = False
            return
        count -= here


def top_counts(parts: Sequence[Tensor], k: int) -> list[int]:
    """Return how many of the ``k`` largest scores of several tensors, taken together, each tensor has.

    Ties go to the earlier tensors, and NaN ranks lowest, as in ``keep_top`` of all of them.

    >>> top_counts([torch.tensor([1.0, 3.0]), torch.tensor([2.0, 3.0, 3.0])], 3)
    [1, 2]
    """
    scores = Scores(parts, [None] * len(parts))
    if not 0 <= k <= scores.size:
        raise ValueError(f"cannot keep {k} of {scores.size} entries")
    if k == 0:
        return [0] * len(parts)
    threshold = kth_largest(scores, k)
    above = [count_true(part > threshold) for part in parts]
    counts, left = [], k - sum(above)
    for part, more in zip(parts, above, strict=True):
        level = count_true(_on(part, threshold))
        counts.append(more + min(left, level))
        left -= min(left, level)
    return counts


def _on(scores: Tensor, threshold: float) -> Tensor:
    """Return where scores are at a threshold; NaN is at −inf."""
    level = scores == threshold
    return level.logical_or_(scores.isnan()) if threshold == -math.inf else level


def apportion(
    total: int, weights: Sequence[float], caps: Sequence[int], floors: Sequence[int] | None = None
) -> list[int]:
    """Split ``total`` into whole shares in proportion to ``weights``, none outside its floor and cap.

    Ours, because rounding each layer by itself misses the total. Shares at their cap are taken out and the rest is
    divided anew (the rule of ERK: Evci et al. 2020, sec. 3); what rounding leaves goes to the largest fractions.
    A share differs from the exact quotient by less than 1 unless a cap or floor holds it.

    Args:
        total: what the shares sum to.
        weights: not negative; equal shares when all are zero.
        caps, floors: the most and the least each share may be; floors are 0 by default.

    Raises: InputError when the caps cannot hold the total, or the floors exceed it.

    >>> apportion(10, [1, 1, 3], caps=[9, 1, 9])
    [2, 1, 7]
    """
    floors = [0] * len(caps) if floors is None else floors
    if not sum(floors) <= total <= sum(caps):
        raise InputError(f"cannot split {total} into shares that sum to between {sum(floors)} and {sum(caps)}")
    held: set[int] = set()  # shares that proportion alone would put below their floor
    while True:
        shares = _fill(total - sum(floors[i] for i in held), weights, caps, skip=held)
        short = {i for i, share in enumerate(shares) if i not in held and share < floors[i]}
        if not short:
            break
        held |= short
    exact = [float(floors[i]) if i in held else share for i, share in enumerate(shares)]
    counts = [min(cap, math.floor(share + 1e-9)) for share, cap in zip(exact, caps, strict=True)]
    by_fraction = sorted(range(len(caps)), key=lambda i: (counts[i] - exact[i], i))
    left = total - sum(counts)
    while left > 0:  # one round does, but for rounding in the quotients
        for i in by_fraction:
            if left > 0 and counts[i] < caps[i]:
                counts[i] += 1
                left -= 1
    return counts


def _fill(total: float, weights: Sequence[float], caps: Sequence[int], skip: set[int]) -> list[float]:
    """Return real shares in proportion to the weights; a share over its cap gets the cap, and the rest is divided anew."""
    shares = [0.0] * len(caps)
    free = [i for i in range(len(caps)) if i not in skip]
    while free:
        scale = sum(weights[i] for i in free)
        quotient = {i: total * (weights[i] / scale if scale > 0 else 1 / len(free)) for i in free}
        full = [i for i in free if quotient[i] > caps[i]]
        for i in full or free:
            shares[i] = float(caps[i]) if full else quotient[i]
        if not full:
            break
        total -= sum(caps[i] for i in full)
        free = [i for i in free if i not in full]
    return shares
