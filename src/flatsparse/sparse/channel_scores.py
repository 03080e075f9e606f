"""Channel scores, and selections of channels by score, for rules that prune channels.

A layer's filters are the columns of a matrix ``(inputs · kernel positions, channels)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flatsparse.common.errors import InputError
from flatsparse.sparse.topk import keep_top

Filters = Sequence[tuple[Tensor, Tensor]]  # of each layer that writes the channels: weights and mask, (channels, …)
FilterScore = Callable[[Filters], Tensor]  # (channels,); the lowest go first


def finite(values: Tensor) -> Tensor:
    """Return values with 0 for those that are not finite, so that the channels of a net that diverges are chosen too."""
    return torch.where(values.isfinite(), values, 0)


def leverage(matrix: Tensor, rank: int) -> Tensor:
    """Return each column's share of the leading ``rank`` right singular vectors, from 0 to 1 (CHEX: Hou et al. 2022).

    The squared row norms of ``V_k``. Columns with the largest scores span nearly what all span (column-subset selection).
    Of a matrix with fewer rows than columns it is the L1 norm of each column instead, as in the published method. Rows
    that are all zero, those of removed inputs, do not count as rows: that is ours.

    Returns: float64, a score a column.

    >>> leverage(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), rank=1).tolist()
    [1.0, 0.0]
    """
    matrix = finite(matrix).double()
    matrix = matrix[matrix.any(1)]
    if matrix.shape[0] < matrix.shape[1]:
        return matrix.abs().sum(0)
    right = torch.linalg.svd(matrix, full_matrices=False).Vh
    return right[:rank].square().sum(0)


def residuals(matrix: Tensor, kept: Tensor) -> Tensor:
    """Return the norm of what the span of the kept columns lacks of each column, ``‖x − Px‖`` (CHEX: Hou et al. 2022).

    Args:
        kept: bool, an entry a column.

    Returns: float64, an entry a column; those of kept columns are 0 up to rounding.
    """
    matrix = finite(matrix).double()
    span = matrix[:, kept]
    return (matrix - span @ (torch.linalg.pinv(span) @ matrix)).norm(dim=0)


def draw(scores: Tensor, count: int, among: Tensor, generator: torch.Generator) -> Tensor:
    """Draw ``count`` candidates without replacement, each time with the softmax of their scores as probabilities.

    Gumbel noise makes it one choice of the largest (Kool et al. 2019, "Stochastic Beams and Where to Find Them").

    Returns: bool, with exactly ``count`` entries true, all of them in ``among``.
    """
    uniform = torch.rand(scores.shape, generator=generator, dtype=torch.float64).clamp_min(1e-300)
    return keep_top(scores - (-uniform.log()).log().to(scores.device), count, among=among)


def select_channels(scores: Sequence[Tensor], total: int, floors: Sequence[int]) -> list[Tensor]:
    """Select the ``total`` largest scores of all groups, of no group fewer than its floor; a bool tensor a group.

    Raises: InputError when the floors exceed the total.
    """
    if total < sum(floors):
        raise InputError(
            f"{total} channels cannot be left where {len(floors)} groups keep {sum(floors)} at least: give a smaller channels="
        )
    sure = [keep_top(s, floor) for s, floor in zip(scores, floors, strict=True)]
    first = [torch.where(best, torch.inf, s) for s, best in zip(scores, sure, strict=True)]
    return list(keep_top(torch.cat(first), total).split([len(s) for s in scores]))


def mean_magnitude(filters: Filters) -> Tensor:
    """Return the mean ``|w|`` over all entries of a filter, zeros included: UMM (Chase: Yin et al. 2023)."""
    return _ratio([w.abs() for w, _ in filters], [torch.ones_like(w) for w, _ in filters])


def mean_active_magnitude(filters: Filters) -> Tensor:
    """Return the mean ``|w|`` over the active entries of a filter (an option of Chase: Yin et al. 2023)."""
    return _ratio([w.abs() for w, _ in filters], [mask.to(w.dtype) for w, mask in filters])


def active_fraction(filters: Filters) -> Tensor:
    """Return the share of a filter's entries that are active (an option of Chase: Yin et al. 2023)."""
    return _ratio([mask.to(w.dtype) for w, mask in filters], [torch.ones_like(w) for w, _ in filters])


def active_kernels(filters: Filters) -> Tensor:
    """Return the share of a filter's kernels, one an input, that have an active entry (an option of Chase: Yin et al. 2023)."""
    alive = [mask.unsqueeze(-1).flatten(2).any(2).to(w.dtype) for w, mask in filters]
    return _ratio(alive, [torch.ones_like(a) for a in alive])


def _ratio(over: Sequence[Tensor], under: Sequence[Tensor]) -> Tensor:
    """Return a quotient of sums over all that writes a channel; 0 where nothing is summed."""
    top, bottom = (sum(part.detach().double().flatten(1).sum(1) for part in parts) for parts in (over, under))
    assert isinstance(top, Tensor)
    assert isinstance(bottom, Tensor)
    return top / bottom.clamp_min(1)
