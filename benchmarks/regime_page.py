"""The page of the paper's regime, docs/paper-regime.md, with every number that was measured from results/regime.jsonl.

python benchmarks/regime_page.py             # when all runs of the plan are there
python benchmarks/regime_page.py --partial   # prints what is complete so far
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import arms
import judged
from planned import matched, missing, write_page
from regime import (
    CHOICE,
    CHOSEN_AT,
    PLACES,
    SEEDS,
    SHARED,
    Cell,
    compared,
    for_choice,
    measured,
    other_rho,
)

from flatsparse.experiments.recipes import table1
from flatsparse.experiments.run.config import RunConfig

ROOT = Path(__file__).parent.parent
PAGE, TEMPLATE = ROOT / "docs" / "paper-regime.md", Path(__file__).with_name("regime_page.md")
METHODS = {"mest": "MEST(EM)", "rigl": "RigL"}
GROUP = arms.Group("plain", "S²-SAM", ("S²-SAM", "label smoothing"))
NOTHING = "No runs of this part are complete."
Place = tuple[str, float]  # method and sparsity
Line = Mapping[str, Any]
Claims = Mapping[Place, arms.Claims]


def cells(lines: Sequence[Line], place: Place) -> list[Cell]:
    """Return the runs of a method and sparsity; while some for its choices are missing, as if the first were chosen."""
    choice = list(for_choice(place[0]))
    return [*choice, *compared([] if missing(lines, choice) else lines, *place)]


def planned(lines: Sequence[Line]) -> list[Cell]:
    """Return the runs that the plan had before any was read."""
    return list(dict.fromkeys(cell for place in PLACES for cell in cells(lines, place)))


def standing(lines: Sequence[Line]) -> str:
    """Return how many runs of the plan are there; empty when all are."""
    every = planned(lines)
    left = missing(lines, every)
    return f"{len(every) - len(left)} of {len(every)} runs of the plan are measured" if left else ""


def complete(lines: Sequence[Line]) -> dict[Place, arms.Runs]:
    """Return the runs on CIFAR-10 of each method and sparsity that lacks none there."""
    found = {}
    for place in PLACES:
        wanted = [cell for cell in cells(lines, place) if cell.data == "cifar10"]
        own = of_cells(lines, wanted)
        if len(own) == len(wanted):
            found[place] = arms.Runs.of(own, SEEDS, (CHOICE,))
    return found


def of_cells(lines: Sequence[Line], wanted: Iterable[Cell]) -> list[Line]:
    """Return the lines of runs, in the order of these; without those that are missing."""
    return [line for _, line in matched(lines, wanted) if line is not None]


def rendered(lines: Sequence[Line]) -> str:
    """Return the page of the methods and sparsities that lack no run; if any does, with a note on top."""
    runs, far = complete(lines), standing(lines)
    found = arms.claims(runs, (GROUP,))
    page = TEMPLATE.read_text(encoding="utf-8").format(
        printed=table1.OURS["mest", "cifar10", 0.98] - table1.PLAIN["mest"][0][-1],
        runs=len(planned(lines)),
        **SHARED,
        optim=RunConfig().optim,
        seeds=len(SEEDS),
        claims=sum(map(len, found.values())),
        says="\n".join(f"- {text}" for text in (*says(runs, found), *says_of_other_rho(lines, runs))) or NOTHING,
        table=table(runs, found) if runs else NOTHING,
        choices=judged.listed(choices(runs), NOTHING),
        cifar100=cifar100(lines),
        verdict=verdict(found[PLACES[0]][GROUP.ours, GROUP.base]) if PLACES[0] in found else NOTHING,
    )
    return f"**Incomplete: {far}; claims are judged over what is complete.**\n\n{page}" if far else page


def says(runs: Mapping[Place, arms.Runs], found: Claims) -> list[str]:
    """Return the sentences above the table."""
    sentences = []
    for place, own in found.items():
        gain, smoothing, between = (own[pair] for pair in GROUP.pairs)
        sentences.append(
            f"**{name(place)}.** Plain training has {judged.mean(runs[place].values(GROUP.base), 2)} %. S²-SAM {_told(gain)},"
            f" label smoothing {_told(smoothing)}; S²-SAM minus label smoothing {_told(between)}."
        )
    return sentences


def _told(claim: judged.Claim) -> str:
    """Return a difference and its verdict in words."""
    side = {"gain": "no gain", "loss": "no loss", "difference": "neither gain nor loss"}.get(claim.excluded or "")
    unsure = "not sure" if side is None else f"not sure, {side} of half a point or more"
    return f"{claim.written(2)} ({'sure' if claim.sure else unsure})"


def table(runs: Mapping[Place, arms.Runs], found: Claims) -> str:
    """Return the table of all arms."""
    head = ["method", "arm", "chosen", "gradients", "train %", "test %", "to plain", "ruled out"]
    rows = []
    for place, own in runs.items():
        for arm in (GROUP.base, *GROUP.others):
            gain, ours = found[place].get((arm, GROUP.base)), found[place].get((GROUP.ours, arm))
            rows.append(
                [
                    name(place),
                    arm,
                    arms.settings_text(own.settings(arm), SHARED["epochs"]),
                    judged.mean(own.values(arm, "gradients"), 0),
                    judged.mean(own.values(arm, "train_accuracy")),
                    judged.mean(own.values(arm), 2),
                    *arms.claimed(gain, 2),
                    *arms.claimed(ours if arm != GROUP.base else None, 2),
                    judged.mean(own.values(arm, "images_per_second"), 0),
                ]
            )
    return judged.table([*head, "S²-SAM minus it", "ruled out", "images/s"], rows)


def choices(runs: Mapping[Place, arms.Runs]) -> list[str]:
    """Return the validation accuracy by which each method's candidates were chosen."""
    return [
        f"{METHODS[method]} {arms.settings_text(own.candidates(arm)[candidate], SHARED['epochs'])} {value:.2f} %"
        for (method, sparsity), own in runs.items()
        if CHOSEN_AT[method] == sparsity
        for arm in GROUP.others
        for candidate, value in own.validation(arm).items()
    ]


def cifar100(lines: Sequence[Line]) -> str:
    """Return the sentence of the two runs on CIFAR-100."""
    own = {line["arm"]: line for line in lines if line["data"] == "cifar100"}
    if len(own) < 2:
        return "CIFAR-100: " + NOTHING
    plain, ours = own["plain"], own["S²-SAM"]
    where = f"seed {plain['seed']}, {name((plain['method'], plain['sparsity']))}"
    return (
        f"CIFAR-100 (a copy of JPEG images, quality 90) once, {where}: plain {plain['test']:.2f} %, S²-SAM {ours['test']:.2f} %"
        f" with the ρ of CIFAR-10, {ours['settings']['rho']:g}. One pair has no interval, and claims nothing."
    )


def at_other_rho(lines: Sequence[Line]) -> dict[Place, list[float]]:
    """Return S²-SAM's accuracies at the ρ that was not chosen, in the places whose runs of it are there."""
    own = {place: of_cells(lines, other_rho(lines, *place)) for place in PLACES}
    return {place: [line["test"] for line in found] for place, found in own.items() if len(found) == len(SEEDS)}


def says_of_other_rho(lines: Sequence[Line], runs: Mapping[Place, arms.Runs]) -> list[str]:
    """Return the sentences of the runs that were added to the plan."""
    sentences = []
    for place, values in at_other_rho(lines).items():
        if place not in runs:
            continue
        own, ours = runs[place], GROUP.ours
        chosen = own.chosen(ours)
        lost = own.validation(ours)[chosen] - own.validation(ours)[1 - chosen]
        rho, other = (f"ρ {own.candidates(ours)[index]['rho']:g}" for index in (chosen, 1 - chosen))
        plain, smoothing, same = (
            judged.difference(judged.paired(values, own.values(arm)), 2)
            for arm in (GROUP.base, "label smoothing", ours)
        )
        sentences.append(
            f"**{name(place)} at {other}**, which lost the choice to {rho} by {lost:.2f} points of validation accuracy. S²-SAM"
            f" has {judged.mean(values, 2)} %: to plain {plain}, to label smoothing {smoothing}, to {rho} {same}. These runs were"
            " added to the plan when others were read, and nothing is claimed of them."
        )
    return sentences


def verdict(claim: judged.Claim) -> str:
    """Return whether what would count holds for S²-SAM's difference to plain training with MEST(EM) at 98 %."""
    small = claim.excluded in ("gain", "difference")
    texts = {
        (True, False): "For",
        (False, True): "Against",
        (True, True): "Both: there is a gain, and it is smaller than half a point",
        (False, False): "Neither: these runs leave it open",
    }
    return f"**{texts[claim.above, small]}.** The difference is {claim.written(2)}."


def name(place: Place) -> str:
    """Return a method and its sparsity.

    >>> name(("mest", 0.98))
    'MEST(EM) 98 %'
    """
    return f"{METHODS[place[0]]} {judged.place(place[1])}"


if __name__ == "__main__":
    write_page(PAGE, measured(), standing(measured()), rendered)
