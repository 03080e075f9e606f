"""Figure 2: the steps of SGD, SAM and S²-SAM on a loss of two weights, taken by the optimizers themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatsparse.experiments.labels import color, label
from flatsparse.sam.optimizers import S2SAM, SAM

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WRAPPERS: dict[str, Callable[[Optimizer, float], Optimizer]] = {
    "none": lambda base, rho: base,
    "sam": lambda base, rho: SAM(base, rho=rho),
    "s2sam": lambda base, rho: S2SAM(base, rho=rho),
}


@dataclass(frozen=True)
class Path2D:
    """The weights of an optimizer, (steps + 1, 2), and the perturbed weights it took each gradient at, (steps, 2)."""

    weights: np.ndarray
    perturbed: np.ndarray


def two_valleys(w: Tensor) -> Tensor:
    """A loss of two weights with a narrow valley at (−1, 0) and a wide one at (1, 0), equally deep (ours).

    ``−log(e^(−n) + e^(−m))`` of the two bowls n and m: near either minimum it is that bowl.
    """
    narrow = 8 * (w[..., 0] + 1) ** 2 + 8 * w[..., 1] ** 2
    wide = 0.8 * (w[..., 0] - 1) ** 2 + 0.8 * w[..., 1] ** 2
    return -torch.logaddexp(-narrow, -wide)


def walk(
    sharpness: str,
    loss: Callable[[Tensor], Tensor] = two_valleys,
    *,
    start: Sequence[float] = (-1.25, 0.35),
    steps: int = 12,
    lr: float = 0.08,
    rho: float = 0.3,
) -> Path2D:
    """The steps of one optimizer, SGD without momentum or a wrapper of it, on a loss of two weights.

    Args:
        sharpness: none, sam or s2sam.
        loss: of a tensor (…, 2).
        start, steps, lr, rho: ρ is in the units of the weights.
    """
    w = nn.Parameter(torch.tensor(start))
    optimizer = WRAPPERS[sharpness](torch.optim.SGD([w], lr=lr), rho)
    seen: list[Tensor] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(w)
        value.backward()
        seen.append(w.detach().clone())
        return value

    weights, perturbed = [w.detach().clone()], []
    for _ in range(steps):
        optimizer.step(closure)  # type: ignore[arg-type]  # torch's stubs want a float
        weights.append(w.detach().clone())
        perturbed.append(seen[-1])  # SAM's first gradient only gives the direction
    return Path2D(torch.stack(weights).numpy(), torch.stack(perturbed).numpy())


def figure2(loss: Callable[[Tensor], Tensor] = two_valleys, *, rho: float = 0.3, **options: object) -> Figure:
    """Figure 2 of Ji et al. 2024, the mechanism: steps as lines, and from each weight an arrow to where its gradient was taken.

    Args:
        loss, rho, options: as for ``walk``.
    """
    from matplotlib.figure import Figure

    paths = {name: walk(name, loss, rho=rho, **options) for name in WRAPPERS}  # type: ignore[arg-type]
    points = np.concatenate([part for path in paths.values() for part in (path.weights, path.perturbed)])
    low, high = points.min(0) - 0.3, points.max(0) + 0.3
    axes_of_grid = [torch.linspace(float(a), float(b), 150) for a, b in zip(low, high, strict=True)]
    heights = loss(torch.stack(torch.meshgrid(*axes_of_grid, indexing="xy"), dim=-1)).numpy()
    figure = Figure(figsize=(3.4 * len(paths), 3.4), layout="constrained")
    for axis, (name, path) in zip(figure.subplots(1, len(paths), sharey=True), paths.items(), strict=True):
        axis.contour(*(values.numpy() for values in axes_of_grid), heights, levels=25, cmap="Greys", linewidths=0.6)
        axis.plot(*path.weights.T, "o-", color=color(name), markersize=3, linewidth=1.2)
        for here, there in zip(path.weights, path.perturbed, strict=False):
            if not np.array_equal(here, there):
                axis.annotate("", there, here, arrowprops={"arrowstyle": "->", "color": "#333333", "linewidth": 0.8})
        axis.set_title(label(name) + (f", ρ = {rho:g}" if name != "none" else ""), fontsize=10)
        axis.set_aspect("equal")
    return figure
