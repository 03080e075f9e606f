"""The page of the referee, docs/referee.md, and its picture, with every number from results/referee.jsonl.

python benchmarks/referee_page.py
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import arms as tables
import judged
from arms import Claims, Group, Line, Runs
from judged_picture import differences
from matplotlib.figure import Figure
from referee import ARMS, CHOICE, DATA, EPOCHS, NOISES, SEEDS, measured

from flatsparse.common.files import write_atomic
from flatsparse.experiments.labels import COLORS
from flatsparse.experiments.plotting import save

ROOT = Path(__file__).parent.parent
PAGE, TEMPLATE = ROOT / "docs" / "referee.md", Path(__file__).with_name("referee_page.md")
PICTURE = PAGE.with_suffix(".png")
LABELS = dict(zip(NOISES, ("right labels", "wrong labels"), strict=True))
NAMES = {
    "SAM, half the epochs": "SAM in half the epochs",
    "random": "random direction",
    "momentum": "momentum as direction",
    "average": "average as direction",
    "stale": "stale gradient",
    "less the average": "gradient less average",
    "mask": "mask gradient",
    "S²-SAM, early stopping": "S²-SAM with early stopping",
    "S²-SAM, weight decay": "S²-SAM with weight decay",
    "S²-SAM, label smoothing": "S²-SAM with label smoothing",
    "SAFE, S²-SAM": "SAFE with S²-SAM",
    "SAFE, SAM, half the epochs": "SAFE with SAM in half the epochs",
}
REGULARIZERS = ("early stopping", "weight decay", "label smoothing")
STRENGTHS = {"weight decay": "weight_decay", "label smoothing": "label_smoothing"}
RIGL = Group("plain", "S²-SAM", tuple(arm for arm in ARMS if arm != "plain" and not arm.startswith("SAFE")))
SAFE = Group("SAFE", "SAFE, S²-SAM", tuple(arm for arm in ARMS if arm.startswith("SAFE, ")))
WITH_REGULARIZER = (
    "**S²-SAM with a regularizer**, minus the regularizer alone, each at its own chosen strength, without a claim. "
)
OURS, OTHER = COLORS["s2sam"], COLORS["sam"]
LEGEND = {"black": "regularizers", OURS: "S²-SAM, alone or combined", OTHER: "SAM, other directions and rules for ρ"}
HINDSIGHT = 1.0  # points between the chosen and the best candidate, from which on the page tells


def by_labels(lines: Iterable[Line]) -> dict[float, Runs]:
    """Return the runs of each kind of labels."""
    kept = list(lines)
    return {noise: Runs.of((one for one in kept if one["noise"] == noise), SEEDS, CHOICE) for noise in NOISES}


def rendered(lines: Sequence[Line]) -> str:
    """Return the page."""
    runs = by_labels(lines)
    found = tables.claims(runs, (RIGL, SAFE))
    all_tables = [
        f"### {capital(title)}\n\n{tables.table(runs[noise], (RIGL, SAFE), found[noise], NAMES, EPOCHS)}"
        for noise, title in LABELS.items()
    ]
    whole = max(line["gradients"] for line in lines if line["arm"] == RIGL.base)
    shares = [line["gradients"] / whole for line in lines]
    every = [claim for own in found.values() for claim in own.values()]
    return TEMPLATE.read_text(encoding="utf-8").format(
        runs=len(lines),
        seeds=len(SEEDS),
        claims=len(every),
        sure=sum(claim.sure for claim in every),
        fewest=f"{100 * min(shares):.0f}",
        most=f"{100 * max(shares):.0f}",
        says="\n".join(f"- {sentence}" for sentence in says(runs, found)),
        tables="\n\n".join(all_tables),
        verdict="\n".join(f"- {sentence}" for sentence in counts(found)),
        hindsight="; ".join(f"with {LABELS[noise]} {judged.listed(hindsight(runs[noise]))}" for noise in NOISES),
    )


def says(runs: Mapping[float, Runs], found: Mapping[float, Claims]) -> list[str]:
    """Return the sentences above the tables."""
    return [
        *(to_plain(LABELS[noise], runs[noise], found[noise]) for noise in NOISES),
        "**S²-SAM beside the others.** " + with_labels(lambda noise: ours(found[noise])),
        WITH_REGULARIZER + with_labels(lambda noise: added(runs[noise])),
        "**At equal strength**, with the ρ of the best validation accuracy there, S²-SAM with a regularizer minus that alone. "
        + with_labels(lambda noise: judged.listed(at_equal_strength(runs[noise]))),
        "**SAFE, and what is added to it.** " + with_labels(lambda noise: _safe(runs[noise], found[noise])),
    ]


def counts(found: Mapping[float, Claims]) -> list[str]:
    """Return whether what would count holds, for each kind of labels."""
    sentences = []
    for noise, own in found.items():
        plain = own[RIGL.ours, RIGL.base]
        rivals = {arm: own[RIGL.ours, arm] for arm in REGULARIZERS}
        better = [arm for arm, claim in rivals.items() if claim.below]
        larger = [f"{arm} ({claim.text})" for arm, claim in rivals.items() if claim.interval.mean < 0]
        holds = plain.above and not better
        sentences.append(
            f"**{capital(LABELS[noise])}: {'it holds' if holds else 'it does not hold'}.** S²-SAM is "
            f"{'' if plain.above else 'not '}surely above plain, {plain.text}. Regularizers surely above S²-SAM: "
            f"{judged.listed(better)}. Regularizers of a larger mean, and S²-SAM minus them: {judged.listed(larger)}."
        )
    return sentences


def picture(lines: Sequence[Line]) -> Figure:
    """Draw what each arm gains over the plain one of its group."""
    found = tables.claims(by_labels(lines), (RIGL, SAFE))
    panels = {
        title: {_name(arm): found[noise][arm, group.base] for group in (RIGL, SAFE) for arm in group.others}
        for noise, title in LABELS.items()
    }
    return differences(
        panels,
        color={_name(arm): _color(arm) for arm in ARMS}.__getitem__,
        legend=LEGEND,
        lowest=-5.0,
    )


def to_plain(title: str, runs: Runs, found: Claims, group: Group = RIGL) -> str:
    """Return the sentence of the differences to plain training."""
    own = {arm: found[arm, group.base] for arm in group.others}
    order = sorted(own, key=lambda arm: -own[arm].interval.mean)
    unsure = [arm for arm in order if not own[arm].sure]
    above, below = ([arm for arm in order if getattr(own[arm], side)] for side in ("above", "below"))
    possible = [arm for arm in unsure if not own[arm].no_gain]
    return (
        f"**{capital(title)}.** Plain training has {judged.mean(runs.values(group.base))} %. The largest mean is that of "
        f"{_name(order[0])}, {own[order[0]].text}. Surely above plain: {_with_means(own, above)}. Surely below: "
        f"{_with_means(own, below)}. Of the other {len(unsure)}, a gain of half a point or more is ruled out for "
        f"{len(unsure) - len(possible)}, and not for the rest: {_names(possible)}."
    )


def ours(found: Claims, group: Group = RIGL) -> str:
    """Return which arms S²-SAM is surely above or below, and to how many the difference is not sure."""
    rivals = {arm: found[group.ours, arm] for arm in group.others if arm != group.ours}
    unsure = sum(not claim.sure for claim in rivals.values())
    larger = sum(claim.interval.mean < 0 for claim in rivals.values())
    above, below = ([arm for arm, claim in rivals.items() if getattr(claim, side)] for side in ("above", "below"))
    return (
        f"it is surely above {_names(above)}, and surely below {_names(below)}; to {unsure} of {len(rivals)} the difference is "
        f"not sure. {larger} of {len(rivals)} have a larger mean"
    )


def added(runs: Runs) -> str:
    """Return what S²-SAM adds to each regularizer."""
    return judged.listed(f"{arm} {judged.difference(runs.gaps(f'S²-SAM, {arm}', arm))}" for arm in REGULARIZERS)


def at_equal_strength(runs: Runs) -> list[str]:
    """Return what S²-SAM adds to a regularizer at each strength that both were tried at, with the ρ chosen there."""
    texts = []
    for arm, setting in STRENGTHS.items():
        combined = f"S²-SAM, {arm}"
        validation, settings = runs.validation(combined), runs.candidates(combined)
        for alone, own in runs.candidates(arm).items():
            same = {one: [validation[one]] for one in settings if settings[one][setting] == own[setting]}
            if same:
                ours = runs.values(combined, candidate=judged.chosen(same))
                gaps = judged.paired(ours, runs.values(arm, candidate=alone))
                texts.append(f"{arm} {own[setting]:g} {judged.difference(gaps)}")
    return texts


def _safe(runs: Runs, found: Claims) -> str:
    """Return the accuracy of SAFE, and what is compared with it."""
    texts = [f"{_name(arm)} {found[arm, SAFE.base].text}" for arm in SAFE.others]
    return f"SAFE has {judged.mean(runs.values(SAFE.base))} %; differences to it: {judged.listed(texts)}"


def hindsight(runs: Runs) -> list[str]:
    """Return the arms of which another candidate than the chosen one has a clearly higher mean on the compared seeds."""
    texts = []
    for arm in dict.fromkeys(arm for arm, _, _ in runs.lines):
        there = [one for one in runs.candidates(arm) if all((arm, one, seed) in runs.lines for seed in runs.compared)]
        means = {one: statistics.fmean(runs.values(arm, candidate=one)) for one in there}
        best = max(means, key=means.__getitem__)
        if (more := means[best] - means[runs.chosen(arm)]) >= HINDSIGHT:
            texts.append(f"{_name(arm)} ({tables.settings_text(runs.candidates(arm)[best], EPOCHS)}: +{more:.1f})")
    return texts


def with_labels(text: Callable[[float], str], noises: Iterable[float] = NOISES) -> str:
    """Return a sentence for each kind of labels."""
    return " ".join(f"With {LABELS[noise]} {text(noise)}." for noise in noises)


def _with_means(found: Mapping[str, judged.Claim], arms: Iterable[str]) -> str:
    return judged.listed(f"{_name(arm)} ({judged.signed(found[arm].interval.mean)})" for arm in arms)


def _names(arms: Iterable[str]) -> str:
    return judged.listed(_name(arm) for arm in arms)


def _name(arm: str) -> str:
    return NAMES.get(arm, arm)


def _color(arm: str) -> str:
    return OURS if "S²-SAM" in arm else "black" if arm in REGULARIZERS else OTHER


def capital(text: str) -> str:
    """Return a text that begins with a capital letter."""
    return text[0].upper() + text[1:]


if __name__ == "__main__":
    if not DATA.exists():
        raise SystemExit("no runs yet: python benchmarks/referee.py")
    write_atomic(PAGE, rendered(measured()).encode())
    save(picture(measured()), PICTURE)
