"""Surfaces drawn side by side, always on one scale: a rough one and a smooth one must not look alike."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from flatsparse.experiments.labels import label
from flatsparse.experiments.landscape.records import of_kind
from flatsparse.experiments.plotting import caption
from flatsparse.measure.spectral import Spectrum

if TYPE_CHECKING:
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

MAP = "viridis"


@dataclass(frozen=True)
class Surface:
    """The surface of one run: heights (n, n) of a loss over a grid (n) along both directions, and their roughness."""

    name: str
    heights: np.ndarray
    grid: np.ndarray
    ra: float
    loss: str = "cross-entropy"

    @property
    def title(self) -> str:
        return f"{self.name}\nRa {self.ra:.3f}"


def surface(record: Mapping[str, Any], clip: float | None, kind: str) -> Surface:
    """The surface of a run's record in ``landscape.json``, cut at ``clip``."""
    saved = of_kind(record, kind)
    heights = np.array([[math.inf if z is None else z for z in row] for row in saved["losses"]])
    heights = heights if clip is None else np.minimum(heights, clip)
    loss = record.get("loss", "cross-entropy")  # older records do not say
    return Surface(record["name"], heights, np.array(record["grid"]), saved["ra"]["value"], loss)


def scale(surfaces: Sequence[Surface]) -> Normalize:
    """The scale from the lowest to the highest of all surfaces."""
    from matplotlib.colors import Normalize

    return Normalize(min(s.heights.min() for s in surfaces), max(s.heights.max() for s in surfaces))


def in_space(surfaces: Sequence[Surface]) -> Figure:
    """Surfaces in three dimensions, side by side."""
    return _in_space([surfaces], rows=[""])


def contours(surfaces: Sequence[Surface], levels: int = 20) -> Figure:
    """Contours of the surfaces, with the weights themselves as a dot."""
    from matplotlib.figure import Figure

    common = scale(surfaces)
    figure = Figure(figsize=(1 + 3.2 * len(surfaces), 3.4), layout="constrained")
    axes = figure.subplots(1, len(surfaces), squeeze=False)[0]
    heights = np.linspace(common.vmin or 0.0, common.vmax or 1.0, levels)
    for axis, shown in zip(axes, surfaces, strict=True):
        axis.contourf(shown.grid, shown.grid, shown.heights.T, levels=heights, cmap=MAP, norm=common)
        axis.contour(shown.grid, shown.grid, shown.heights.T, levels=heights, colors="#00000055", linewidths=0.4)
        axis.plot(0, 0, ".", color="#d55e00")
        axis.set_title(caption(shown.title), fontsize=9)
        axis.set_aspect("equal")
    _color_bar(figure, common, list(axes), surfaces)
    return figure


def spectra(records: Sequence[Mapping[str, Any]]) -> Figure:
    """The spectral density of each run's Hessian over active weights, on one scale; a line marks the largest eigenvalue."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axis = figure.subplots()
    hessians = [record["hessian"] for record in records]
    low = min(min(hessian["spectrum"]["nodes"]) for hessian in hessians)
    high = max(max(hessian["spectrum"]["nodes"]) for hessian in hessians)
    width = max(high - low, 1e-12) / 100
    at = torch.linspace(low - 4 * width, high + 4 * width, 1000, dtype=torch.float64)
    for number, (record, hessian) in enumerate(zip(records, hessians, strict=True)):
        points = {name: torch.tensor(values, dtype=torch.float64) for name, values in hessian["spectrum"].items()}
        axis.plot(at, Spectrum(**points).density(at, width), color=f"C{number}", label=caption(record["name"]))
        axis.axvline(hessian["live"]["largest"], color=f"C{number}", linewidth=0.8, linestyle=":")
    axis.set_yscale("log")
    axis.set_ylim(bottom=1e-7 / width)
    axis.set_xlabel("eigenvalue of the Hessian, active weights")
    axis.set_ylabel("density")
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3)
    return figure


def figure1(surfaces: Mapping[tuple[str, float], Surface]) -> Figure:
    """Figure 1 of Ji et al. 2024: how surfaces get rougher, a row for each method, a column for each sparsity."""
    methods = list(dict.fromkeys(method for method, _ in surfaces))
    sparsities = list(dict.fromkeys(sparsity for _, sparsity in surfaces))
    return _in_space(
        [[_at(sparsity, surfaces.get((m, sparsity))) for sparsity in sparsities] for m in methods], methods
    )


def figure3(surfaces: Mapping[tuple[str, str, float], Surface]) -> Figure:
    """Figure 3 of Ji et al. 2024: surfaces by method, sharpness (such as none and s2sam) and sparsity.

    A row for each method and sharpness, a column for each sparsity.
    """
    rows = list(dict.fromkeys(key[:2] for key in surfaces))
    sparsities = list(dict.fromkeys(key[2] for key in surfaces))
    names = [f"{method}, {label(sharpness)}" for method, sharpness in rows]
    return _in_space(
        [[_at(sparsity, surfaces.get((*row, sparsity))) for sparsity in sparsities] for row in rows], names
    )


def _at(sparsity: float, shown: Surface | None) -> Surface | None:
    """A surface by its sparsity's name."""
    return None if shown is None else dataclasses.replace(shown, name=f"{sparsity:.0%} sparse")


def _in_space(cells: Sequence[Sequence[Surface | None]], rows: Sequence[str]) -> Figure:
    from matplotlib.figure import Figure

    surfaces = [shown for row in cells for shown in row if shown is not None]
    common = scale(surfaces)
    figure = Figure(figsize=(1 + 3.2 * len(cells[0]), 0.4 + 3.0 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(cells[0]), squeeze=False, subplot_kw={"projection": "3d"})
    for y, row in enumerate(cells):
        axes[y, 0].text2D(
            -0.05, 0.5, caption(rows[y]), transform=axes[y, 0].transAxes, rotation=90, va="center", fontsize=9
        )
        for axis, shown in zip(axes[y], row, strict=True):
            if shown is None:
                axis.set_axis_off()
                continue
            one, other = np.meshgrid(shown.grid, shown.grid, indexing="ij")
            axis.plot_surface(one, other, shown.heights, cmap=MAP, norm=common, rcount=60, ccount=60, linewidth=0)
            axis.set_zlim(common.vmin, common.vmax)
            axis.tick_params(labelsize=6, pad=-2)
            axis.set_title(caption(shown.title), fontsize=9)
    _color_bar(figure, common, axes.ravel().tolist(), surfaces)
    return figure


def _color_bar(figure: Figure, common: Normalize, axes: list[Any], surfaces: Sequence[Surface]) -> None:
    from matplotlib.cm import ScalarMappable

    losses = {shown.loss for shown in surfaces}
    name = losses.pop() if len(losses) == 1 else "loss"
    figure.colorbar(ScalarMappable(common, MAP), ax=axes, shrink=0.7, label=f"mean {name}")
