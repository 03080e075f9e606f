"""The records of ``landscape.json``: each run with its surface and roughness, from the losses that were measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from flatsparse.common.errors import InputError
from flatsparse.experiments.landscape.settings import Kind, Landscape
from flatsparse.experiments.stats import mean_interval, paired_difference
from flatsparse.measure import surface

SHARES = (0.25, 0.5, 1.0)  # of the reach, at which Ra is given: far out it is the clip's as much as the network's


def tabulate(
    settings: Landscape, about: Sequence[dict[str, Any]], values: dict[tuple[Path, Kind, int], Tensor]
) -> list[dict[str, Any]]:
    """A record for each run: what it is, and its surface and roughness of each kind, the first kind's at the top."""
    top, *others = settings.kinds
    names = [run.name for run in settings.runs]
    records = []
    for run, known in zip(settings.runs, about, strict=True):
        surfaces = {kind: _surface(settings, run, kind, values) for kind in settings.kinds}
        half = settings.points // 2
        records.append(
            {
                **known,
                "name": run.name if names.count(run.name) == 1 else str(run),
                "grid": list(settings.axis(0)),
                "centre": float(values[run, top, 0][half, half]),
                "kind": top,
                **surfaces[top],
                "also": {kind: surfaces[kind] for kind in others},
            }
        )
    return records


def of_kind(record: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """A record's losses and roughness of a kind."""
    return record["also"].get(kind, record)


def _surface(
    settings: Landscape, folder: Path, kind: Kind, values: dict[tuple[Path, Kind, int], Tensor]
) -> dict[str, Any]:
    """The drawn surface, and its roughness over the whole of it and over its centre."""
    first, drawn = settings.runs[0], values[folder, kind, 0]

    def pairs(run: Path) -> list[Tensor]:
        """A run's surfaces on the grid that all pairs of directions share."""
        coarse = values[run, kind, 0][:: settings.stride, :: settings.stride]
        return [coarse, *(values[run, kind, n] for n in range(1, settings.pairs))]

    def roughness(share: float) -> dict[str, Any]:
        of_run, of_first = ([_ra(settings, _centre(z, share), run) for z in pairs(run)] for run in (folder, first))
        whole, coarse = _centre(drawn, share), _centre(pairs(folder)[0], share)
        return {
            "value": _ra(settings, whole, folder),
            "clipped": 0.0 if settings.clip is None else float((~(whole <= settings.clip)).double().mean()),
            "reach": settings.reach * (len(whole) - 1) / (len(drawn) - 1),
            "by_pair": of_run,
            "pairs_reach": settings.reach * (len(coarse) - 1) / (len(settings.axis(1)) - 1),
            "pairs_points": len(coarse),
            **mean_interval(of_run).to_json(),
            "over_first": None if folder == first else paired_difference(of_run, of_first).to_json(),
        }

    # On so coarse a grid two shares may be the same points.
    shares = {len(_centre(pairs(folder)[0], share)): share for share in SHARES}
    return {
        "losses": [[z if math.isfinite(z) else None for z in row] for row in drawn.tolist()],
        "ra": {**roughness(1.0), "by_range": [roughness(share) for share in shares.values()]},
    }


def _centre(values: Tensor, share: float) -> Tensor:
    """The centre of a surface, at least a point to each side."""
    half = len(values) // 2
    kept = max(1, math.floor(share * half))
    return values[half - kept : half + kept + 1, half - kept : half + kept + 1]


def _ra(settings: Landscape, values: Tensor, folder: Path) -> float:
    value = surface.roughness(values, settings.clip)
    if not math.isfinite(value):
        raise InputError(f"the loss around '{folder}' is not finite everywhere: give a --clip, or a smaller --reach")
    return value
