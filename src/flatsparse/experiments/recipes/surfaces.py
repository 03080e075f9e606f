"""The common part of Figures 1 and 3: surfaces of finished runs, as ``landscape`` measures them, and their roughness."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatsparse.experiments.landscape import measure, pictures
from flatsparse.experiments.landscape.settings import Landscape
from flatsparse.experiments.metric import Metric
from flatsparse.experiments.plotting import save
from flatsparse.experiments.recipes.recipe import Cell, Measured, Scale, Work

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROUGHNESS = Metric("roughness Ra of the loss surface", "lower", effect=0.1)
# points along each direction, training images, pairs of directions
SIZES: dict[Scale, tuple[int, int, int]] = {"smoke": (5, 50, 2), "laptop": (21, 1000, 3), "paper": (51, 2000, 5)}
NOTE = (
    "Range, directions and clip of the printed surfaces are unknown, so their Ra cannot be compared; here as"
    " `flatsparse landscape` measures. The surfaces drawn are of the first seed."
)

Key = tuple[Any, ...]
Drawn = Mapping[Key, pictures.Surface]


def surfaces(draw: Callable[[Drawn], Figure], key: Callable[[Cell], Key]) -> Callable[..., Measured]:
    """Return the ``measure`` of a recipe: it measures the surfaces of its runs and draws those of the first seed.

    Args:
        draw: makes the figure from surfaces by key.
        key: a cell's place in the figure.
    """

    def measured(runs: Sequence[tuple[Cell, Sequence[Path]]], work: Work) -> Measured:
        folders = tuple(dict.fromkeys(folder for _, own in runs for folder in own))
        if not folders:
            return Measured()
        points, images, pairs = SIZES[work.scale]
        settings = Landscape(
            folders,
            points=points,
            images=images,
            pairs=pairs,
            hessian_images=0,
            data_dir=work.data_dir,
            device=work.device,
            jobs=work.jobs,
        )
        records = measure.measure(settings, work.out, resume=True, console=work.console)
        by_folder = dict(zip(folders, records, strict=True))
        shown = {
            key(cell): pictures.surface(by_folder[own[0]], settings.clip, settings.kinds[0])
            for cell, own in runs
            if cell.control is None  # which would stand where the cell it joins does
        }
        picture = work.out / "surfaces.png"
        save(draw(shown), picture)
        return Measured({folder: record["ra"]["value"] for folder, record in by_folder.items()}, pictures=[picture])

    return measured
