"""The roughness and curvature of runs as tables and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flatsparse.experiments.landscape.records import of_kind
from flatsparse.experiments.landscape.settings import Landscape
from flatsparse.experiments.stats import Interval
from flatsparse.measure import directions

MUCH = 0.05  # of the losses cut, above which Ra is no longer the network's alone


def head(records: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The heading of the table."""
    return ("", "loss", *(f"Ra to ±{inner['pairs_reach']:.2g}" for inner in records[0]["ra"]["by_range"]), "cut")


def rows(records: Sequence[Mapping[str, Any]], kind: str) -> list[tuple[str, ...]]:
    """A row for each run: Ra over the pairs of directions, with half of its interval."""
    table = []
    for record in records:
        surface = of_kind(record, kind)
        ranges = [Interval.from_json(inner).with_half(".4f") for inner in surface["ra"]["by_range"]]
        table.append((record["name"], f"{record['centre']:.4f}", *ranges, f"{surface['ra']['clipped']:.0%}"))
    return table


def sentences(records: Sequence[Mapping[str, Any]], kind: str) -> list[str]:
    """Sentences on each run against the first, along the same directions."""
    lines = []
    for record in records[1:]:
        both = (of_kind(who, kind)["ra"]["by_range"] for who in (record, records[0]))
        ranges = [_against_first(ra, first) for ra, first in zip(*both, strict=True)]
        lines.append(f"{record['name']} against {records[0]['name']}: {'; '.join(ranges)}.")
    if len({record["model"] for record in records}) > 1:
        lines.append("The networks differ, and so do their directions: differences here are not along the same ones.")
    if len({record["data"] for record in records}) > 1:
        lines.append("The data sets differ, so one loss does not mean the same as another.")
    return lines


def _against_first(ra: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    over = Interval.from_json(ra["over_first"])
    if not over.bounded:
        verdict = "nothing can be concluded (one pair of directions, or all alike)"
    elif over.low > 0:
        verdict = "rougher"
    else:
        verdict = "smoother" if over.high < 0 else "cannot be told apart"
    text = f"to ±{ra['pairs_reach']:.2g} {verdict}, Ra {over.with_half('+.4f')}"
    if max(ra["clipped"], first["clipped"]) > MUCH:
        text += f" (but {ra['clipped']:.0%} and {first['clipped']:.0%} are cut, and what is cut is flat)"
    return text


CURVATURE = ("", "weights", "largest", "smallest", "trace")
GAINS = ("", "ρ", "worst found", "own gradient (SAM)", "previous (S²-SAM)", "random", "cosine of the two")


def curvature(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Two rows for each run: the Hessian's ends and trace over the active weights, and over all."""
    table: list[tuple[str, ...]] = []
    for record in records:
        for space, name in (("live", "active"), ("all", "all")):
            spectrum = record["hessian"][space]
            ends = (f"{spectrum['largest']:.4g}", f"{spectrum['smallest']:.3g}")
            trace = f"{spectrum['trace']:.4g} ± {spectrum['trace_half']:.2g}"
            table.append((record["name"] if space == "live" else "", f"{name} ({spectrum['weights']:,})", *ends, trace))
    return table


def gains(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A row for each run: what each direction gains, and how alike consecutive gradients are."""
    table = []
    for record in records:
        around = record["around"]
        rises = [f"{around['gain'][name]:.4f}" for name in ("worst", "sam", "previous", "random")]
        table.append((record["name"], f"{around['rho']:g}", *rises, f"{around['cosine']:+.3f}"))
    return table


def curvature_definition(records: Sequence[Mapping[str, Any]]) -> str:
    """A full description of how curvature was measured."""
    images = sorted({record["hessian"]["images"] for record in records})
    return (
        f"On the first {' or '.join(map(str, images))} training {_unit(records)}. The Hessian is that of their mean loss in"
        " evaluation mode; its ends by Lanczos to 1 %, its trace by random signs, ± half of a 95 % interval, its density by"
        f" Lanczos quadrature. {directions.DEFINITION}; the previous gradient is that of the batch before, at the same weights."
    )


def definition(settings: Landscape, records: Sequence[Mapping[str, Any]]) -> str:
    """A full description of how roughness was measured."""
    images = sorted({record["images"] for record in records})
    samples = f"the first {' or '.join(map(str, images))} training {_unit(records)} of each run"
    coarse = records[0]["ra"]["pairs_points"]
    rounded = [record for record in records if record["precision"] == "bf16"]
    off = max((abs(record["rounded_centre"] - record["centre"]) for record in rounded), default=0.0)
    precision = f" Points other than the centre in bf16, whose error at the centre is {off:.2g}." if rounded else ""
    cut = "not cut" if settings.clip is None else f"cut at {settings.clip:g}"
    return (
        f"Mean {_loss(records)} over {samples}, labels as trained"
        " on, evaluation mode, no augmentation, along two Gaussian directions whose filters are as long as the network's;"
        f" biases and norms stay.{precision} {settings.points} × {settings.points} points on"
        f" ±{settings.reach:g}. Ra is the mean absolute deviation of the losses, {cut}; the share of the drawn"
        " ones that is cut is given, because it affects Ra too. In tables it is"
        f" the mean over {settings.pairs} pairs of directions, each seen at {coarse} × {coarse} of those points, ± half of"
        " Student's 95 % interval; differences are paired by directions. Above a picture it is that of all its points."
    )


def _loss(records: Sequence[Mapping[str, Any]]) -> str:
    """The loss of the runs in words: cross-entropy, where it is that of all."""
    names = {record["loss"] for record in records}
    return str(names.pop()) if len(names) == 1 else "loss"


def _unit(records: Sequence[Mapping[str, Any]]) -> str:
    """The word for the samples of the runs."""
    units = {record["unit"] for record in records}
    return str(units.pop()) if len(units) == 1 else "samples"
