"""The page of free directions, docs/free-directions.md, with its tables and verdicts from results/free_directions.jsonl.

python benchmarks/free_directions_page.py    # when all measurements of the study are there
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import judged
from free_directions import NOISE, RHOS, SEEDS, TRAIN_RHOS, measured, parts
from free_directions_tried import DIRECTIONS, FRESH, RIVALS
from planned import missing

from flatsparse.common.files import write_atomic
from flatsparse.experiments.stats import mean_interval, paired_difference

PAGE = Path(__file__).parent.parent / "docs" / "free-directions.md"
TEMPLATE = Path(__file__).with_name("free_directions_page.md")
RUNS_OF = ("none", "s2sam")  # the sharpness of the runs that gains are measured along
Records = Sequence[Mapping[str, Any]]


def standing(records: Records) -> str:
    """Return how many measurements are there; empty when all are."""
    every = [cell for part in parts() for cell in part]
    left = sum(len(missing(records, part)) for part in parts())
    return f"{len(every) - left} of {len(every)} measurements are there" if left else ""


def rendered(records: Records) -> str:
    """Return the page, with every number from the records."""
    return TEMPLATE.read_text(encoding="utf-8").format(
        runs=sum(r["kind"] == "gain" for r in records) // len(RUNS_OF),
        noise=f"{NOISE:.0%}".replace("%", " %"),
        seeds=len(SEEDS),
        gains_plain=gains_plain(records),
        gains_s2sam=gains_s2sam(records),
        rivals=rivals(records),
        rivals_verdict=rivals_verdict(records),
        outcome=outcome(records),
        verdict=verdict(records),
    )


def gains_plain(records: Records) -> str:
    """Return the table of each direction's gain along plain runs, as a share of SAM's."""
    about = {"fresh": FRESH, **{name: text for name, (_, _, text) in DIRECTIONS.items()}}
    rows = [[name, *(_text(share(records, "none", rho, name)) for rho in RHOS), about[name]] for name in about]
    return judged.table(["direction", *_rhos(RHOS), "what it is"], rows)


def gains_s2sam(records: Records) -> str:
    """Return the same table along runs with S²-SAM, and the largest ρ's shares by third of the run."""
    rows = [
        [
            name,
            *(_text(share(records, "s2sam", rho, name)) for rho in RHOS),
            *(judged.mean(share(records, "s2sam", RHOS[-1], name, third), 2) for third in range(3)),
        ]
        for name in ("fresh", *DIRECTIONS)
    ]
    return judged.table(["direction", *_rhos(RHOS), "first third", "second", "last"], rows)


def share(records: Records, sharpness: str, rho: float, name: str, third: int | None = None) -> list[float]:
    """Return a direction's mean gain over SAM's, run by run; of one third of the runs if it is given."""

    def mean(gain: Mapping[str, list[float]], of: str) -> float:
        return statistics.fmean(gain[of]) if third is None else gain[of][third]

    return [mean(gain, name) / mean(gain, "sam") for gain in _gains(records, "gain", sharpness, rho)]


def rival_share(records: Records, sharpness: str, rho: float, name: str) -> list[float]:
    """Return a rival's mean gain over SAM's, run by run."""
    return [gain[name] / gain["sam"] for gain in _gains(records, "rivals", sharpness, rho)]


def _gains(records: Records, kind: str, sharpness: str, rho: float) -> list[Mapping[str, Any]]:
    return [r["gain"][str(rho)] for r in records if (r["kind"], r.get("sharpness")) == (kind, sharpness)]


def rivals(records: Records) -> str:
    """Return the table of rivals: their price, gains as shares of SAM's, and the largest ρ's for each gradient."""
    rows = []
    for name, (gradients, about) in RIVALS.items():
        plain = [rival_share(records, "none", rho, name) for rho in RHOS]
        ours = rival_share(records, "s2sam", RHOS[-1], name)
        each, ours_each = ([value * RIVALS["sam"][0] / gradients for value in shares] for shares in (plain[-1], ours))
        told = ["1" if name == "sam" else _text(values) for values in (*plain, each, ours, ours_each)]
        rows.append([name, f"{gradients:g}", *told, about])
    there = [f"S²-SAM's run: ρ = {RHOS[-1]:g}", "per gradient there"]
    return judged.table(["direction", "gradients", *_rhos(RHOS), "per gradient", *there, "what it goes along"], rows)


def rivals_verdict(records: Records) -> str:
    """Return how rivals' shares differ from the previous gradient's at the largest ρ, paired by run."""
    told = []
    for name in [name for name in RIVALS if name not in ("sam", "previous")]:
        plain, ours = (
            paired_difference(*(rival_share(records, sharpness, RHOS[-1], one) for one in (name, "previous")))
            for sharpness in RUNS_OF
        )
        told.append(f"{name} {judged.signed(plain, 2)}, and {judged.signed(ours, 2)} on S²-SAM's run")
    return (
        f"At ρ = {RHOS[-1]:g}, how far the share is above the previous gradient's, paired by run, with the 95 % interval:"
        f" {'; '.join(told)}."
    )


def accuracies(records: Records, name: str, rho: float, of: str = "test") -> list[float]:
    """Return a direction's accuracies at a ρ, in the order of the seeds."""
    runs = {r["seed"]: r[of] for r in records if r["kind"] == "accuracy" and (r["direction"], r["rho"]) == (name, rho)}
    return [runs[seed] for seed in SEEDS]


def best_rho(records: Records, name: str) -> float:
    """Return the ρ with the highest mean validation accuracy, the smallest of equals."""
    return judged.chosen({rho: accuracies(records, name, rho, "validation") for rho in TRAIN_RHOS})


def over_previous(records: Records) -> dict[str, list[float]]:
    """Return each other direction's test accuracy less the previous gradient's, seed by seed, each at its best ρ."""
    best = {name: accuracies(records, name, best_rho(records, name)) for name in DIRECTIONS}
    return {name: judged.paired(best[name], best["previous"]) for name in DIRECTIONS if name != "previous"}


def outcome(records: Records) -> str:
    """Return the table of accuracies, with where directions rest in the bowl."""
    gaps = over_previous(records)
    rest = {r["direction"]: r["rest"] for r in records if r["kind"] == "bowl"}
    rows = [
        [
            name,
            *(judged.mean(accuracies(records, name, rho), 2) for rho in TRAIN_RHOS),
            f"{best_rho(records, name):g}",
            judged.signed(mean_interval(gaps[name])) if name in gaps else "",
            f"{rest[name]:.3f}",
            str(buffers),
        ]
        for name, (_, buffers, _) in DIRECTIONS.items()
    ]
    return judged.table(["direction", *_rhos(TRAIN_RHOS), "chosen", "over previous", "bowl: ‖w‖/ρ", "buffers"], rows)


def verdict(records: Records) -> str:
    """Return which directions are surely better than the previous gradient, and which worse."""
    claims = judged.claims(over_previous(records))
    better, worse = ([name for name, claim in claims.items() if getattr(claim, side)] for side in ("above", "below"))
    return (
        f"Surely better than the previous gradient, Holm's p over the {len(claims)} differences below 0.05:"
        f" {judged.listed(better)}. Surely worse: {judged.listed(worse)}. There was no plan, and ρ was chosen on the seeds that"
        " are compared, by their validation accuracy."
    )


def _rhos(rhos: Sequence[float]) -> list[str]:
    return [f"ρ = {rho:g}" for rho in rhos]


def _text(values: Sequence[float]) -> str:
    return mean_interval(values).with_half(".2f").replace("-", "−")


if __name__ == "__main__":
    if far := standing(measured()):
        raise SystemExit(f"{far}: {PAGE.name} is not written")
    write_atomic(PAGE, rendered(measured()).encode())
