"""The page of what changes with sparsity, docs/sparsity.md, and its picture, with every number from results/sweep.jsonl.

python benchmarks/sweep_page.py
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import judged
import sweep
from sweep import NOISES, SEEDS, SHARES, SPARSITIES, Place
from sweep_claims import (
    GROWTH,
    QUANTITIES,
    SLOPE,
    Claims,
    Line,
    Pairs,
    by_place,
    gain_claims,
    grown,
    logarithm,
    rounds_claims,
    slopes,
    surface_claims,
    swept,
    verdict,
)

from flatsparse.common.files import write_atomic
from flatsparse.experiments.stats import mean_interval
from flatsparse.sparse.rounds import Remaining

ROOT = Path(__file__).parent.parent
PAGE, TEMPLATE = ROOT / "docs" / "sparsity.md", Path(__file__).with_name("sweep_page.md")
LABELS = dict(zip(NOISES, ("right", "wrong"), strict=True))
METHODS = {"lth": "LT", "lrr": "LRR"}


def ratio(logarithms: Sequence[float], star: str = "") -> str:
    """A ratio with its 95 % interval from differences of logarithms, bold where that leaves out 1.

    >>> ratio([0.0, 0.1, -0.1]), ratio([1.0, 1.1, 0.9])
    ('1.00 [0.78–1.28]', '**2.72 [2.12–3.48]**')
    """
    found = mean_interval(logarithms)
    mean, low, high = (_number(math.exp(value)) for value in (found.mean, found.low, found.high))
    text = f"{mean} [{low}–{high}]"
    return (text if found.low <= 0 <= found.high else f"**{text}**") + star


def _number(value: float) -> str:
    """A positive number with three digits or more."""
    return f"{value:.{max(0, 2 - max(0, math.floor(math.log10(value))))}f}"


def _geometric(lines: Iterable[Line], quantity: str, space: str = "active") -> str:
    return _number(statistics.geometric_mean([line[space][quantity] for line in lines]))


def gain_table(runs: Mapping[Place, Pairs], found: Claims) -> str:
    """Return the gains over sparsity."""
    rows = []
    for sparsity in SPARSITIES:
        cells = [judged.place(sparsity)]
        for noise in NOISES:
            cells += _gain(swept(runs, noise)[sparsity], found[noise, sparsity])
        rows.append(cells)
    rows.append([SLOPE, *(cell for noise in NOISES for cell in ("", found[noise, SLOPE].text, ""))])
    return judged.table(_gain_head("sparsity"), rows)


def _gain_head(*first: str) -> list[str]:
    return [*first, "right labels", "S²-SAM (ρ)", "ruled out", "20 % wrong", "S²-SAM (ρ)", "ruled out"]


def _gain(own: Pairs, claim: judged.Claim) -> list[str]:
    """The cells of a gain: plain accuracy, difference with ρ, and what is ruled out."""
    return [judged.mean(line["test"] for line in own.plain), f"{claim.text} ({own.rho:g})", claim.verdict]


def surface_table(own: Mapping[float, Pairs], found: Claims, noise: float) -> str:
    """Return the surface's measures over sparsity at one kind of labels."""
    rows = []
    for sparsity, pairs in own.items():
        cells = [judged.place(sparsity)]
        for quantity in QUANTITIES:
            claim = found[quantity, noise, sparsity]
            cells += [_geometric(pairs.plain, quantity), ratio(claim.gaps, _star(claim))]
        fitted = (judged.mean(line["train_accuracy"] for line in arm) for arm in (pairs.plain, pairs.s2sam))
        rows.append([*cells, ", ".join(fitted)])
    growth, steep = [GROWTH], ["for each tenfold fewer weights"]
    for quantity in QUANTITIES:
        claim, read = found[quantity, noise, GROWTH], logarithm(quantity)
        growth += [ratio(claim.gaps, _star(claim)), ""]
        plain = {sparsity: [read(line) for line in pairs.plain] for sparsity, pairs in own.items()}
        steep += [ratio(slopes(plain)), ratio(_steeper(own, quantity))]
    head = [
        "sparsity",
        *(cell for name in QUANTITIES.values() for cell in (f"{name}, plain", "S²-SAM ÷ plain")),
        "fitted",
    ]
    return judged.table(head, [*rows, [*growth, ""], [*steep, ""]])


def _steeper(own: Mapping[float, Pairs], quantity: str) -> list[float]:
    """Return the slopes of S²-SAM's ratio to plain nets, as logarithms, seed by seed."""
    return slopes({sparsity: pairs.gaps(logarithm(quantity)) for sparsity, pairs in own.items()})


def _star(claim: judged.Claim) -> str:
    return "\\*" if claim.sure else ""


def beside_table(own: Mapping[float, Pairs]) -> str:
    """Return the smallest eigenvalue, and the measures in the space of all weights, over sparsity."""
    rows = []
    for sparsity, pairs in own.items():
        cells = [judged.place(sparsity), judged.mean((line["active"]["smallest"] for line in pairs.plain), 2)]
        cells.append(judged.difference(pairs.gaps(lambda line: line["active"]["smallest"]), 2))
        for quantity in QUANTITIES:
            cells += [_geometric(pairs.plain, quantity, "all"), ratio(pairs.gaps(logarithm(quantity, "all")))]
        rows.append(cells)
    growth = [cell for quantity in QUANTITIES for cell in (ratio(grown(own, logarithm(quantity, "all"))), "")]
    smallest = judged.difference(grown(own, lambda line: line["active"]["smallest"]), 2)
    head = ["sparsity", "smallest eigenvalue, plain", "S²-SAM − plain"]
    head += [cell for name in QUANTITIES.values() for cell in (f"{name}, all weights, plain", "S²-SAM ÷ plain")]
    return judged.table(head, [*rows, ["98 % against dense, plain", smallest, "", *growth]])


def rounds_table(runs: Mapping[Place, Pairs], found: Claims) -> str:
    """Return the gains in rounds."""
    own = {(p.noise, p.method, p.share): pairs for p, pairs in runs.items() if p.in_rounds}
    rows = []
    for method, name in METHODS.items():
        for share in SHARES:
            cells = [f"{name}, {share:.0%} × {Remaining(share, sweep.TARGET).prunings}".replace("%", " %")]
            for noise in NOISES:
                cells += _gain(own[noise, method, share], found[noise, method, share])
            rows.append(cells)
    for method, name in METHODS.items():
        cells = [f"{name}, 40 % − 20 %"]
        for noise in NOISES:
            more, fewer = (own[noise, method, share].gains for share in (SHARES[-1], SHARES[0]))
            cells += ["", judged.difference(judged.paired(more, fewer)), ""]
        rows.append(cells)
    return judged.table(_gain_head("pruned a round × prunings"), rows)


def rendered(lines: Sequence[Line]) -> str:
    """Return the page."""
    runs = by_place(lines)
    gain, surface, rounds = gain_claims(runs), surface_claims(runs), rounds_claims(runs)
    names = {noise: f"### {'20 % of the labels wrong' if noise else 'Right labels'}" for noise in NOISES}
    own = {noise: swept(runs, noise) for noise in NOISES}
    return TEMPLATE.read_text(encoding="utf-8").format(
        gain=gain_table(runs, gain),
        surface="\n\n".join(f"{names[n]}\n\n{surface_table(pairs, surface, n)}" for n, pairs in own.items()),
        beside="\n\n".join(f"{names[n]}\n\n{beside_table(pairs)}" for n, pairs in own.items()),
        rounds_table=rounds_table(runs, rounds),
        runs=len(lines),
        seeds=len(SEEDS),
        claims_gain=len(gain),
        claims_surface=len(surface),
        claims_rounds=len(rounds),
        hessian_images=sweep.HESSIAN_IMAGES,
        surface_images=sweep.SURFACE_IMAGES,
        points=sweep.POINTS,
        reach=sweep.REACH,
        clip=sweep.CLIP,
        pairs=sweep.PAIRS,
        round_epochs=sweep.ROUND_EPOCHS,
        **summary(runs, gain, surface, rounds),
    )


def summary(runs: Mapping[Place, Pairs], gain: Claims, surface: Claims, rounds: Claims) -> dict[str, Any]:
    """Return what the sentences above the tables tell."""
    return {**_told_of_gain(runs, gain), **_told_of_surface(runs, surface), **_told_of_rounds(rounds)}


def _told_of_gain(runs: Mapping[Place, Pairs], gain: Claims) -> dict[str, Any]:
    told: dict[str, Any] = {"each": len(SPARSITIES)}
    for noise, name in LABELS.items():
        own = {sparsity: gain[noise, sparsity] for sparsity in SPARSITIES}
        sure = [sparsity for sparsity, claim in own.items() if claim.sure]
        gains = {sparsity: pairs.gains for sparsity, pairs in swept(runs, noise).items()}
        told |= {
            f"slope_{name}": gain[noise, SLOPE].text,
            f"claim_{name}": _held(gain[noise, SLOPE]),
            f"sure_{name}": len(sure),
            f"which_{name}": judged.listed(map(judged.place, sure)),
            f"no_gain_{name}": sum(claim.no_gain for claim in own.values()),
            f"fitted_{name}": judged.difference(slopes({s: gains[s] for s in SPARSITIES[:-1]})),
        }
    wrong = swept(runs, NOISES[-1])
    top = max(SPARSITIES, key=lambda sparsity: statistics.fmean(wrong[sparsity].gains))
    told |= {"top_gain": gain[NOISES[-1], top].text, "top_place": judged.place(top)}
    return told | {
        f"fit_{sparsity:.0%}".strip("%"): judged.mean(line["train_accuracy"] for line in wrong[sparsity].plain)
        for sparsity in SPARSITIES[-2:]
    }


def _told_of_surface(runs: Mapping[Place, Pairs], surface: Claims) -> dict[str, Any]:
    told: dict[str, Any] = {"places": len(NOISES) * len(SPARSITIES)}
    verdicts = [verdict(surface, quantity, noise) for quantity in QUANTITIES for noise in NOISES]
    for quantity in QUANTITIES:
        every = {(noise, s): surface[quantity, noise, s] for noise in NOISES for s in SPARSITIES}
        higher = [f"{judged.place(s)}, {LABELS[noise]} labels" for (noise, s), claim in every.items() if claim.above]
        told |= {
            f"lower_{quantity}": sum(claim.below for claim in every.values()),
            f"higher_{quantity}": len(higher),
        }
        if quantity == "largest":
            told["which_higher"] = "; ".join(higher) or "none"
        for noise, name in LABELS.items():
            claim = surface[quantity, noise, GROWTH]
            told[f"{quantity}_{name}"] = ratio(claim.gaps, _star(claim))
            told[f"steeper_{quantity}_{name}"] = ratio(_steeper(swept(runs, noise), quantity))
    counts = {"judged": len(verdicts), "held": verdicts.count("holds"), "refuted": verdicts.count("is refuted")}
    return told | counts


def _told_of_rounds(rounds: Claims) -> dict[str, Any]:
    sure = {key: claim for key, claim in rounds.items() if claim.sure}
    names = (
        f"{METHODS[method]} {share:.0%}, {LABELS[noise]} labels, {claim.interval.mean:+.1f}"
        for (noise, method, share), claim in sure.items()
    )
    which = "; ".join(names).replace("%", " %").replace("-", "−") or "none"
    return {"rounds": len(rounds), "sure_rounds": len(sure), "which_rounds": which}


def _held(claim: judged.Claim) -> str:
    return "holds" if claim.above else "is refuted" if claim.below else "stays open"


if __name__ == "__main__":
    from sweep_picture import drawn

    from flatsparse.experiments.plotting import save

    found = sweep.measured()
    if len(found) < sweep.planned():
        raise SystemExit(f"{len(found)} of {sweep.planned()} runs are there: python benchmarks/sweep.py")
    write_atomic(PAGE, rendered(found).encode())
    save(drawn(by_place(found)), PAGE.with_suffix(".png"))
