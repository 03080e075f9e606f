"""The page of CIFAR-10, docs/cifar.md, with every number from results/cifar.jsonl.

python benchmarks/cifar_page.py             # when all runs of the plan are there
python benchmarks/cifar_page.py --partial   # prints what is complete so far
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import arms
import judged
import survives_page
from cifar import (
    CHANGED_ON,
    CORRUPTED,
    EPOCHS,
    FINE_TUNED,
    NOISES,
    RHOS,
    SEEDS,
    SEEDS_BESIDE,
    SHARED,
    SPARSITIES,
    measured,
)
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
from referee_page import LABELS, NAMES, WITH_REGULARIZER, added, capital, counts, hindsight, ours, to_plain, with_labels
from small_resnet import resnet8
from sweep_claims import slopes

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
        f"### {capital(LABELS[noise])}\n\n{arms.table(own, (REFEREE,), cheap[noise], NAMES, EPOCHS)}"
        for noise, own in shown.referee.items()
    ]
    sentences = [
        *(survival(shown, surviving) if surviving else ()),
        *([corruption(shown, corrupting)] if corrupting else ()),
        *(cheapest(shown, cheap) if cheap else ()),
        *([over_sparsity(shown, sweeping)] if sweeping else ()),
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
        smallest=smallest(shown),
        rho=RHOS[0],
        hindsight=with_labels(lambda noise: judged.listed(hindsight(shown.referee[noise])), shown.referee) or NOTHING,
        verdict=_bullets([*survives_page.counts(shown.changed, surviving), *counts(cheap)]),
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
        own = {(sparsity, change): one for ((sparsity, labels), change), one in found.items() if labels == noise}
        texts.append(f"With {LABELS[noise]}, {_sides(own, survives_page.with_sparsities)} {_as_trained(shown, noise)}")
    return [
        "**What survives.** " + " ".join(texts),
        f"**What survives, other arms.** Of the {len(found)} mean differences, each at its own ρ of the change, SAM in half the"
        f" epochs has a larger one than S²-SAM in {numbers['sam_ahead']}, late SAM in {numbers['late_ahead']}, and noise"
        f" in {numbers['random_ahead']}.",
        "**Forgetting**, the part of S²-SAM's difference that fine-tuning on half of the classes makes, below 0 where its nets"
        f" forget more than plain ones: {numbers['forgetting']}. Nothing is claimed of these.",
    ]


def corruption(shown: Shown, found: Mapping[Setting, judged.Claim]) -> str:
    """Return the sentence of corrupted images."""
    named = {f"{place(*setting)} ({claim.text})": claim for setting, claim in found.items()}
    larger = sum(
        claim.interval.mean > statistics.fmean(shown.corrupted[setting].gaps("S²-SAM", "plain"))
        for setting, claim in found.items()
    )
    return (
        f"**Corrupted images.** {capital(_sides(named, '; '.join))} The mean difference is larger than that on clean images"
        f" in {larger} settings."
    )


def _sides(found: Mapping[Name, judged.Claim], text: Callable[[Sequence[Name]], str]) -> str:
    """Return which of S²-SAM's differences are sure, and of how many others a gain is ruled out."""
    above = [name for name, claim in found.items() if claim.above]
    below = [name for name, claim in found.items() if claim.below]
    sure = len(above) + len(below)
    parts = [
        f"{sure or 'none'} of S²-SAM's {len(found)} differences to plain training {'is' if sure < 2 else 'are'} sure",
        *(f"sure {side}: {text(own)}" for side, own in (("gains", above), ("losses", below)) if own),
    ]
    ruled_out = sum(claim.no_gain for claim in found.values())
    return f"{'; '.join(parts)}. Of those that are not, a gain of half a point or more is ruled out for {ruled_out}."


def _as_trained(shown: Shown, noise: float) -> str:
    """Return S²-SAM's mean differences before any change, a part of those after it."""
    own = {
        sparsity: runs.gaps("s2sam", runs.chosen("s2sam", AS_TRAINED), AS_TRAINED)
        for (sparsity, labels), runs in shown.changed.items()
        if labels == noise
    }
    gains = judged.listed(
        f"{judged.signed(statistics.fmean(gaps))} ({place(sparsity)})" for sparsity, gaps in own.items()
    )
    return f"As trained, on the same images at the ρ of the accuracy, the mean differences are {gains}."


def cheapest(shown: Shown, found: Mapping[float, arms.Claims]) -> list[str]:
    """Return the sentences of all arms at 95 %."""
    return [
        *(
            to_plain(f"{LABELS[noise]}, all arms at {place(SPARSITIES[0])}", own, found[noise], REFEREE)
            for noise, own in shown.referee.items()
        ),
        "**S²-SAM beside the others.** " + with_labels(lambda noise: ours(found[noise], REFEREE), found),
        WITH_REGULARIZER + with_labels(lambda noise: added(shown.referee[noise]), found),
    ]


def over_sparsity(shown: Shown, found: Mapping[float, judged.Claim]) -> str:
    """Return the sentence of the sweep."""
    texts = judged.listed(f"{place(sparsity)} {claim.text}" for sparsity, claim in found.items())
    said = f"**Over sparsity**, right labels, S²-SAM minus plain: {texts}."
    if len(found) == 1:
        return said
    seeds = len(SEEDS_BESIDE)  # which all sparsities have
    slope = slopes({sparsity: own.gaps("S²-SAM", "plain")[:seeds] for sparsity, own in shown.sweep.items()})
    return f"{said} For each tenfold fewer weights it changes by {judged.difference(slope)} points, n = {seeds}."


def smallest(shown: Shown) -> str:
    """Return in how many of all settings the smallest ρ was chosen for S²-SAM, as trained."""
    settings = {(sparsity, NOISES[0]): own for sparsity, own in shown.sweep.items()} | shown.corrupted
    count = sum(own.settings("S²-SAM")["rho"] == RHOS[0] for own in settings.values())
    return f"{count} of {len(settings)}"


def _bullets(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences) or NOTHING


if __name__ == "__main__":
    write_page(PAGE, measured(), Standing.of(measured()).text, rendered)
