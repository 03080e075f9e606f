"""The page of CIFAR-10, docs/cifar.md, with every number from results/cifar.jsonl.

python benchmarks/cifar_page.py             # when all runs of the plan are there
python benchmarks/cifar_page.py --partial   # prints what is complete so far
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import arms
import judged
import survives_page
from cifar import CHANGED_ON, CORRUPTED, EPOCHS, FINE_TUNED, NOISES, SEEDS, SHARED, SPARSITIES, measured
from cifar_tables import (
    ALL_CHANGES,
    REFEREE,
    Line,
    Setting,
    Shown,
    Standing,
    claims_of_sweep,
    claims_on_corrupted,
    corruption_tables,
    place,
    sweep_table,
)
from planned import write_page
from referee_page import LABELS, NAMES, added, counts, ours, to_plain, with_labels
from small_resnet import resnet8

from flatsparse.experiments.evaluate.changes import AS_TRAINED

ROOT = Path(__file__).parent.parent
PAGE, TEMPLATE = ROOT / "docs" / "cifar.md", Path(__file__).with_name("cifar_page.md")
NOTHING = "No runs of this part are complete."
Name = TypeVar("Name")
Survival = Mapping[tuple[Setting, str], judged.Claim]


def rendered(lines: Sequence[Line]) -> str:
    """Return the page of the settings that lack no run; if any does, with a note on top."""
    shown, standing = Shown.of(lines), Standing.of(lines)
    surviving = survives_page.claims(shown.changed, ALL_CHANGES)
    corrupting, sweeping = claims_on_corrupted(shown), claims_of_sweep(shown)
    cheap = arms.claims(shown.referee, (REFEREE,))
    referee = [
        f"### {_capital(LABELS[noise])}\n\n{arms.table(own, (REFEREE,), cheap[noise], NAMES, EPOCHS)}"
        for noise, own in shown.referee.items()
    ]
    sentences = [
        *(survival(shown, surviving) if surviving else ()),
        *([corruption(shown, corrupting)] if corrupting else ()),
        *(cheapest(shown, cheap) if cheap else ()),
        *([over_sparsity(sweeping)] if sweeping else ()),
    ]
    page = TEMPLATE.read_text(encoding="utf-8").format(
        runs=len(lines),
        **SHARED,
        parameters=sum(p.numel() for p in resnet8().parameters()),
        epochs=EPOCHS,
        seeds=len(SEEDS),
        fitted=fitted(shown),
        changed_on=CHANGED_ON,
        corrupted_on=CORRUPTED,
        says=_bullets(sentences),
        surviving=len(surviving),
        survives=survives_page.setting_tables(shown.changed, surviving, ALL_CHANGES) or NOTHING,
        corrupting=len(corrupting),
        corrupted=corruption_tables(shown, corrupting) if corrupting else NOTHING,
        cheap=sum(map(len, cheap.values())),
        referee="\n\n".join(referee) or NOTHING,
        sweeping=len(sweeping),
        sweep=sweep_table(shown, sweeping) if sweeping else NOTHING,
        verdict=_bullets([*(robust(shown, surviving) if surviving else ()), *counts(cheap)]),
    )
    note = "each family is judged over the settings that are complete"
    return f"**Incomplete: {standing.text}; {note}.**\n\n{page}" if standing.left else page


def fitted(shown: Shown) -> str:
    """Return plain training's accuracy on the training labels, setting by setting."""
    return judged.listed(
        f"{judged.mean(own.values('plain', 'train_accuracy'))} % ({place(*setting)})"
        for setting, own in shown.corrupted.items()
    )


def survival(shown: Shown, found: Survival) -> list[str]:
    """Return the sentences of nets that are changed after training."""
    numbers = survives_page.summary(shown.changed, found, FINE_TUNED)
    texts = []
    for noise in NOISES:
        own = {(change, sparsity): one for ((sparsity, labels), change), one in found.items() if labels == noise}
        above, below, unsure = sides(own)
        texts.append(
            f"With {LABELS[noise]}, {len(above)} of S²-SAM's {len(own)} differences to plain training are sure gains:"
            f" {_by_change(above)}; sure losses: {_by_change(below)}. {_no_gain(unsure)} {_as_trained(shown, noise)}"
        )
    return [
        "**What survives.** " + " ".join(texts),
        f"**What survives, other arms.** Of the {len(found)} mean differences, each at its own ρ of the change, SAM in half the"
        f" epochs has a larger one than S²-SAM in {numbers['sam_ahead']}, late SAM in {numbers['late_ahead']}, and noise"
        f" in {numbers['random_ahead']}. After fine-tuning on half of the classes, S²-SAM's difference has an interval below 0 in"
        f" {numbers['forget']} of {numbers['settings']} settings, and above 0 in {numbers['remember']}.",
    ]


def corruption(shown: Shown, found: Mapping[Setting, judged.Claim]) -> str:
    """Return the sentence of corrupted images."""
    above, below, unsure = sides({f"{place(*setting)} ({claim.text})": claim for setting, claim in found.items()})
    larger = sum(
        claim.interval.mean > statistics.fmean(shown.corrupted[setting].gaps("S²-SAM", "plain"))
        for setting, claim in found.items()
    )
    return (
        f"**Corrupted images.** S²-SAM is surely above plain training in {len(above)} of {len(found)} settings:"
        f" {'; '.join(above) or 'none'}. Surely below: {'; '.join(below) or 'none'}. {_no_gain(unsure)} Its mean difference is"
        f" larger than that on clean images in {larger} settings."
    )


def sides(found: Mapping[Name, judged.Claim]) -> tuple[list[Name], list[Name], list[judged.Claim]]:
    """Return the names of sure gains and of sure losses, and the claims that are not sure."""
    above = [name for name, claim in found.items() if claim.above]
    below = [name for name, claim in found.items() if claim.below]
    return above, below, [claim for claim in found.values() if not claim.sure]


def _by_change(keys: Iterable[tuple[str, float]]) -> str:
    """Return changes, each with the sparsities where it is one of some."""
    places: dict[str, list[str]] = {}
    for change, sparsity in keys:
        places.setdefault(change, []).append(place(sparsity))
    return judged.listed(f"{change} ({', '.join(own)})" for change, own in places.items())


def _as_trained(shown: Shown, noise: float) -> str:
    """Return S²-SAM's mean differences before any change, a part of those after it."""
    own = {
        sparsity: runs.gaps("S²-SAM", "plain")
        for (sparsity, labels), runs in shown.corrupted.items()
        if labels == noise
    }
    gains = judged.listed(f"{_signed(statistics.fmean(gaps))} ({place(sparsity)})" for sparsity, gaps in own.items())
    return f"As trained, at the ρ of the accuracy, the mean differences are {gains}."


def _no_gain(unsure: Sequence[judged.Claim]) -> str:
    ruled_out = sum(claim.no_gain for claim in unsure)
    return f"Of the other {len(unsure)}, a gain of half a point or more is ruled out for {ruled_out}."


def cheapest(shown: Shown, found: Mapping[float, arms.Claims]) -> list[str]:
    """Return the sentences of all arms at 95 %."""
    return [
        *(
            to_plain(f"{LABELS[noise]}, all arms at {place(SPARSITIES[0])}", own, found[noise], REFEREE)
            for noise, own in shown.referee.items()
        ),
        "**S²-SAM beside the others.** " + with_labels(lambda noise: ours(found[noise], REFEREE), found),
        "**S²-SAM added to a regularizer**, minus the regularizer alone; these differences are shown, and not among the claims. "
        + with_labels(lambda noise: added(shown.referee[noise]), found),
    ]


def over_sparsity(found: Mapping[float, judged.Claim]) -> str:
    """Return the sentence of the sweep."""
    texts = judged.listed(f"{place(sparsity)} {claim.text}" for sparsity, claim in found.items())
    return f"**Over sparsity**, right labels, S²-SAM minus plain: {texts}."


def robust(shown: Shown, found: Survival) -> list[str]:
    """Return whether what the plan of ``survives.md`` names as counting holds, in the settings with right labels."""
    texts, held = [], []
    right = {sparsity: own for (sparsity, noise), own in shown.changed.items() if noise == NOISES[0]}
    for sparsity, own in right.items():
        rho = own.chosen("s2sam", AS_TRAINED)
        clean = statistics.fmean(own.gaps("s2sam", rho, AS_TRAINED))
        plain, ours = (
            statistics.fmean(own.test(*arm, AS_TRAINED)) - statistics.fmean(own.test(*arm, "int4"))
            for arm in (("plain", None), ("s2sam", rho))
        )
        if clean >= -judged.MARGIN and plain > 0 and ours <= plain / 2:
            held.append(place(sparsity))
        lost = f"{judged.mean([ours])} lost at 4 bits instead of {judged.mean([plain])}"
        texts.append(f"{place(sparsity)}: {_signed(clean)} as trained, {lost}")
    sure = sum(claim.sure for (setting, _), claim in found.items() if setting[1] == NOISES[0])
    against = "does not hold" if sure else "holds"
    return [
        "**What survives.** For: with right labels, at the ρ of the accuracy, no mean loss beyond half a point as trained, and"
        f" at most half of what plain nets lose at 4 bits. It holds in: {judged.listed(held)} ({'; '.join(texts)}).",
        f"**What survives.** Against: no claim is sure with right labels. It {against}: {sure} are.",
    ] * bool(right)


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _bullets(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences) or NOTHING


if __name__ == "__main__":
    write_page(PAGE, measured(), Standing.of(measured()).text, rendered)
