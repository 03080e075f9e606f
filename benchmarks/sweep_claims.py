"""What the plan of sweep.md compares: pairs of runs at each place, slopes over sparsity, and the three families of claims."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import judged
import sweep
from sweep import NOISES, SEEDS, SPARSITIES, Place

QUANTITIES = {"largest": "largest eigenvalue", "ra": "Ra"}
SLOPE, GROWTH = "slope", "98 % ÷ dense"

Line = Mapping[str, Any]
Claims = Mapping[tuple[Any, ...], judged.Claim]


@dataclass(frozen=True)
class Pairs:
    """The compared runs of a place, by seed, and the ρ of those with S²-SAM."""

    rho: float
    plain: tuple[Line, ...]
    s2sam: tuple[Line, ...]

    def gaps(self, read: Callable[[Line], float]) -> list[float]:
        """The differences of a value of S²-SAM's to that of plain training, seed by seed."""
        return judged.paired([read(line) for line in self.s2sam], [read(line) for line in self.plain])

    @property
    def gains(self) -> list[float]:
        """The differences of test accuracy."""
        return self.gaps(lambda line: line["test"])


def by_place(lines: Sequence[Line]) -> dict[Place, Pairs]:
    """Return the compared runs of each place, the sweep's first."""
    known = {(Place.of(line), line["rho"], line["seed"]): line for line in lines}
    every = [place for part in sweep.places() for place in part]
    return {
        place: Pairs(rho, *(tuple(known[place, arm, seed] for seed in SEEDS) for arm in (None, rho)))
        for place, rho in sweep.chosen(every, lines).items()
    }


def swept(runs: Mapping[Place, Pairs], noise: float) -> dict[float, Pairs]:
    """Return the runs of the sweep by sparsity."""
    return {p.sparsity: own for p, own in runs.items() if not p.in_rounds and p.noise == noise}


def slopes(values: Mapping[float, Sequence[float]]) -> list[float]:
    """Least-squares slopes over log10(1/density), seed by seed.

    >>> slopes({0.0: [1.0, 2.0], 0.9: [3.0, 2.0]})
    [2.0, 0.0]
    """
    tenfolds = [-math.log10(1 - sparsity) for sparsity in values]
    return [statistics.linear_regression(tenfolds, own).slope for own in zip(*values.values(), strict=True)]


def logarithm(quantity: str, space: str = "active") -> Callable[[Line], float]:
    """Return what reads the logarithm of a quantity from a line."""
    return lambda line: math.log(line[space][quantity])


def grown(own: Mapping[float, Pairs], read: Callable[[Line], float]) -> list[float]:
    """The differences of plain nets at the highest sparsity to dense ones, seed by seed."""
    last, first = ([read(line) for line in own[s].plain] for s in (SPARSITIES[-1], SPARSITIES[0]))
    return judged.paired(last, first)


def gain_claims(runs: Mapping[Place, Pairs]) -> Claims:
    """The gains at each sparsity, and their slopes, by share of wrong labels."""
    gaps: dict[tuple[Any, ...], list[float]] = {}
    for noise in NOISES:
        own = {sparsity: pairs.gains for sparsity, pairs in swept(runs, noise).items()}
        gaps |= {(noise, sparsity): gains for sparsity, gains in own.items()}
        gaps[noise, SLOPE] = slopes(own)
    return judged.claims(gaps)


def surface_claims(runs: Mapping[Place, Pairs]) -> Claims:
    """Logarithms of the ratios to plain nets, and of plain nets at 98 % to dense ones, by quantity and share of wrong labels."""
    gaps: dict[tuple[Any, ...], list[float]] = {}
    for noise in NOISES:
        own = swept(runs, noise)
        for quantity in QUANTITIES:
            read = logarithm(quantity)
            gaps |= {(quantity, noise, sparsity): pairs.gaps(read) for sparsity, pairs in own.items()}
            gaps[quantity, noise, GROWTH] = grown(own, read)
    return judged.claims(gaps)


def rounds_claims(runs: Mapping[Place, Pairs]) -> Claims:
    """The gains in rounds, by share of wrong labels, method and share pruned."""
    return judged.claims({(p.noise, p.method, p.share): own.gains for p, own in runs.items() if p.in_rounds})


def verdict(surface: Claims, quantity: str, noise: float) -> str:
    """What the plan says of the second claim: it holds, is refuted, or stays open."""
    growth, own = surface[quantity, noise, GROWTH], [surface[quantity, noise, s] for s in SPARSITIES]
    half = len(own) / 2
    if growth.above and sum(c.below for c in own) > half:
        return "holds"
    return "is refuted" if growth.below and sum(c.above for c in own) > half else "stays open"
