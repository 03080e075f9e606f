"""Loss surfaces: the loss on a plane through trained weights, and the surface's roughness."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from flatsparse.common.names import plain_names
from flatsparse.common.seeds import generator
from flatsparse.common.weight_layout import inputs_first, outputs_first
from flatsparse.sparse.layers import prunable

Weights = dict[str, Tensor]
Plane = tuple[Weights, Weights]


def direction(model: nn.Module, *path: int | str, masks: Mapping[str, Tensor] | None = None) -> Weights:
    """A random direction with filters of the same norm as the model's (Li et al. 2018, sec. 4, "filter-wise normalization").

    Gaussian; each filter, all weights of one output, is scaled to the norm of the model's filter. A filter whose
    weights are all 0, such as a pruned one, does not move, and neither do vectors: biases and norms.

    Args:
        model: the network; its weights are read only.
        path: the seed, together with each parameter's name and shape, so that all networks of one architecture get the
            same direction, up to the norms of their filters.
        masks: bool tensors by parameter name. With them the direction is masked and then normalized, so that it stays
            within the active weights; without, it lies in the full space. Ours; the paper has no sparse networks.

    Returns: a tensor for each parameter with more than one dimension.

    >>> {name: tuple(d.shape) for name, d in direction(nn.Linear(3, 2), 0).items()}
    {'weight': (2, 3)}
    """
    named = list(model.named_parameters())
    plain = plain_names([name for name, _ in named])
    layouts = {name: inputs_first(module) for name, (_, module) in prunable(model).items()}
    filters = {}
    for short, (name, p) in zip(plain, named, strict=True):
        if p.ndim < 2:
            continue
        weight = p.detach()
        noise = torch.randn(p.shape, generator=generator(*path, short)).to(weight)
        if masks is not None and short in masks:
            noise = torch.where(masks[short].to(weight.device), noise, 0)
        groups = layouts.get(short, 0)
        weight, noise = outputs_first(weight, groups), outputs_first(noise, groups)
        scale = _filter_norms(weight) / _filter_norms(noise)
        scaled = noise * torch.where(scale.isfinite(), scale, 0)  # a filter without active weights has no direction
        filters[name] = outputs_first(scaled, groups)
    return filters


def _filter_norms(weight: Tensor) -> Tensor:
    return torch.linalg.vector_norm(weight, dim=list(range(1, weight.ndim)), keepdim=True)


@torch.no_grad()
def losses(
    loss: Callable[[Weights], Tensor], weights: Mapping[str, Tensor], plane: Plane, points: Tensor, at_once: int = 1
) -> Tensor:
    """The loss at points of the plane ``w + a·δ + b·η`` (Li et al. 2018, eq. 1).

    Args:
        loss: of the network's weights by name; see ``torch.func.functional_call``. With ``at_once`` it must allow
            ``torch.vmap``.
        weights: the centre w, which is not written to.
        plane: the directions δ and η.
        points: (P, 2), pairs of a and b.
        at_once: the number of points stacked into one call. On a CPU a small convolutional net took 1.2 times as long with
            4 and 3 to 5 times as long with 16 as one after the other; on an accelerator it is not measured.

    Returns: (P,), in the points' order; at (0, 0) the model's own loss.
    """

    def weights_at(point: Tensor) -> Weights:
        moved = {
            name: weights[name] + point[0] * one + point[1] * other
            for (name, one), other in zip(plane[0].items(), plane[1].values(), strict=True)
        }
        return {**weights, **moved}

    points = points.to(next(iter(weights.values())))
    if at_once == 1:
        return torch.stack([loss(weights_at(point)) for point in points])
    return torch.vmap(lambda point: loss(weights_at(point)), chunk_size=at_once)(points)


def grid(axis: Sequence[float]) -> Tensor:
    """All points of a square, (n², 2), row by row: the first coordinate changes slowest."""
    return torch.cartesian_prod(*[torch.tensor(axis, dtype=torch.float64)] * 2)


def axis(points: int, reach: float = 1.0) -> list[float]:
    """An odd number of points from ``-reach`` to ``reach`` with exactly 0 at the centre.

    >>> axis(5)
    [-1.0, -0.5, 0.0, 0.5, 1.0]
    """
    half = points // 2
    return [reach * (index / half) for index in range(-half, half + 1)]


def roughness(values: Tensor, clip: float | None = None) -> float:
    """Ra, the mean absolute deviation ``mean |z − z̄|`` of a surface's heights (as in Ji et al. 2024, who cite Myers 1962).

    The paper gives neither the range nor a clipping of heights, and both determine the value.

    Args:
        values: the losses, any shape.
        clip: higher losses, and those that are not finite, count as this one.

    >>> roughness(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    1.5
    """
    heights = clipped(values, clip)
    return float((heights - heights.mean()).abs().mean())


def clipped(values: Tensor, clip: float | None) -> Tensor:
    """Losses in float64, none above ``clip``; what is not finite counts as ``clip`` too."""
    values = values.double()
    return values if clip is None else torch.where(values.isfinite(), values, clip).clamp(max=clip)
