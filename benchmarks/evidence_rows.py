"""The rows of docs/evidence.md: S²-SAM beside plain training and the best of what costs as much, in studies that are complete."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import arms
import cifar
import cifar_tables
import corrupted
import evidence_methods_page as methods
import judged
import referee
import referee_page
import regime_page
import survives
import survives_page
import sweep
import sweep_claims
from planned import missing

from flatsparse.experiments.equivalence import equivalence
from flatsparse.experiments.labels import label
from flatsparse.experiments.recipes.evidence import labels

Line = Mapping[str, Any]
RIGHT, WRONG = referee.NOISES
PLAIN, OURS = "plain", "S²-SAM"
FORGETTING = survives.CHANGES[-1]
TEXTS = {
    "rounded": "rounded to 4 bits",
    "fine-tuned": "fine-tuned on half of the classes",
    "corrupted": "corrupted images",
}


@dataclass(frozen=True)
class Difference:
    """A paired difference.

    Attributes:
        gaps: seed by seed.
        sure: whether its study claims it, and Holm's p is below 0.05 there.
        nearly: S²-SAM's at a ρ that was nearly chosen, where that was measured afterwards; nothing is claimed of it.
    """

    gaps: tuple[float, ...]
    sure: bool = False
    nearly: tuple[float, ...] | None = None

    @property
    def mean(self) -> float:
        """The mean difference."""
        return statistics.fmean(self.gaps)

    @property
    def text(self) -> str:
        """The difference with its interval, and a star where it is sure; then that at the other ρ."""
        star = "\\*" if self.sure else ""
        other = f" ({judged.difference(self.nearly)} at the ρ nearly chosen)" if self.nearly else ""
        return judged.difference(self.gaps) + star + other


@dataclass(frozen=True)
class Rival:
    """What costs as much as S²-SAM: its difference to plain training, and S²-SAM's to it."""

    name: str
    gain: Difference
    ours: Difference

    @property
    def text(self) -> str:
        """Its name and what it gains."""
        return f"{self.name} {self.gain.text}"


@dataclass(frozen=True)
class Row:
    """A setting in which S²-SAM is compared.

    Attributes:
        plain: the test accuracies of plain training; none where the row is about a slope.
        gain: S²-SAM's difference to plain training.
        family: how many claims it is judged with.
        rival: the best of what costs as much, by mean test accuracy.
        by_change: the part of ``gain`` that the change after training makes, where the row is about one.
        nearly: ``gain`` at a ρ that was nearly chosen, where that was measured.
    """

    setting: str
    plain: tuple[float, ...] | None
    gain: judged.Claim
    family: int
    rival: Rival | None
    by_change: tuple[float, ...] | None = None
    nearly: tuple[float, ...] | None = None

    @property
    def text(self) -> str:
        """S²-SAM's difference to plain training."""
        return Difference(self.gain.gaps, self.gain.sure, self.nearly).text

    @property
    def verdict(self) -> str:
        """What the study says, in a few words."""
        up, down = ("gain", "loss") if self.plain else ("growth", "decline")
        if self.gain.sure:
            own = f"sure {up if self.gain.above else down}"
        else:
            own = "no gain of half a point" if self.plain and self.gain.no_gain else "open"
        if self.rival is None or not self.rival.ours.sure:
            return own
        return f"{own}; surely {'above' if self.rival.ours.mean > 0 else 'below'} {self.rival.name}"


Rows = dict[tuple[str, float], Row]  # by question and share of wrong labels


def of_referee(lines: Sequence[Line]) -> Rows:
    """Return the rows of the referee: digits, as trained."""
    if missing(lines, referee.cells()):
        return {}
    runs, group = referee_page.by_labels(lines), referee_page.RIGL
    found = arms.claims(runs, (group, referee_page.SAFE))
    return {("digits", noise): _among_arms("digits, RigL 95 %", noise, runs, found, group) for noise in runs}


def of_survives(lines: Sequence[Line]) -> Rows:
    """Return the rows of what survives rounding, and of what is forgotten, at the ρ of the change."""
    if missing(lines, survives.cells()):
        return {}
    runs = survives_page.by_setting(lines)
    found, rows = survives_page.claims(runs), {}
    for change, text in (("int4", TEXTS["rounded"]), (FORGETTING, TEXTS["fine-tuned"])):
        for noise in survives.NOISES:
            rows[change, noise] = _after(f"digits, RigL 95 %, {text}", runs, (0.95, noise), change, found)
    return rows


def of_corrupted(lines: Sequence[Line]) -> Rows:
    """Return the rows of corrupted digits: means over all corruptions."""
    if not lines or missing(lines, corrupted.cells()):
        return {}
    known = {(x["sparsity"], x["noise"], x["arm"], x["seed"]): statistics.fmean(x["corrupted"].values()) for x in lines}
    values = {
        (sparsity, noise): {
            arm: [known[sparsity, noise, arm, seed] for seed in survives.SEEDS] for arm in survives.ARMS
        }
        for sparsity in survives.SPARSITIES
        for noise in survives.NOISES
    }
    found = judged.claims({place: judged.paired(own["s2sam"], own[PLAIN]) for place, own in values.items()})
    return {
        ("corrupted", noise): _shown(
            f"digits, RigL 95 %, {TEXTS['corrupted']}", values[0.95, noise], "s2sam", found[0.95, noise], len(found)
        )
        for noise in survives.NOISES
    }


def of_sweep(lines: Sequence[Line]) -> Rows:
    """Return the rows of the sweep over sparsity: how the gain grows."""
    if len(lines) < sweep.planned():
        return {}
    found = sweep_claims.gain_claims(sweep_claims.by_place(lines))
    setting = "digits, RigL 0 to 98 %, gain for each tenfold fewer weights"
    slopes = {noise: found[noise, sweep_claims.SLOPE] for noise in sweep.NOISES}
    return {("slope", noise): Row(setting, None, slope, len(found), None) for noise, slope in slopes.items()}


def surface(lines: Sequence[Line]) -> str:
    """Return in how many cases the paper's claim about the loss surface holds in the sweep; empty before all runs are there."""
    if len(lines) < sweep.planned():
        return ""
    found = sweep_claims.surface_claims(sweep_claims.by_place(lines))
    cases = [sweep_claims.verdict(found, name, noise) for name in sweep_claims.QUANTITIES for noise in sweep.NOISES]
    return f"{cases.count('holds')} of {len(cases)}"


def of_methods(lines: Sequence[Line]) -> Rows:
    """Return the rows of 500 images of CIFAR-10; p is Holm's over a recipe's table, and other directions cost as much."""
    cells, rows = methods.by_cell(lines), {}
    for noise, recipe in ((RIGHT, "main"), (WRONG, "noise")):
        where = (recipe, "RigL 90%", labels(noise))
        place = cells[where]
        p = methods.adjusted({there: own for there, own in cells.items() if there[0] == recipe})
        kept = {name: [run["test_accuracy"] for _, run in sorted(runs.items())] for name, runs in place.items()}
        values = {PLAIN: kept["none"], **{name: kept[name] for name in kept if name in ("s2sam", "random", "momentum")}}
        gaps = tuple(methods.gaps(place, "s2sam"))
        claim = judged.Claim(gaps, p[where, "s2sam"], equivalence(gaps, judged.MARGIN).excluded)
        sure = [name for name in values if p.get((where, name), 1) < judged.LEVEL]
        rows["CIFAR-10, 500 images", noise] = _shown(
            "CIFAR-10, 500 images, RigL 90 %", values, "s2sam", claim, len(p), sure=sure
        )
    return rows


def of_cifar(lines: Sequence[Line]) -> Rows:
    """Return the rows of 10,000 images of CIFAR-10: as trained, rounded, fine-tuned and on corrupted images."""
    if missing(lines, (*cifar.for_choice(), *cifar.compared(lines))):
        return {}
    shown = cifar_tables.Shown.of(lines)
    cheap = arms.claims(shown.referee, (cifar_tables.REFEREE,))
    changed = survives_page.claims(shown.changed, cifar_tables.ALL_CHANGES)
    corrupting = cifar_tables.claims_on_corrupted(shown)
    setting = f"CIFAR-10, {cifar.SHARED['train_size']:,} images, RigL 95 %"
    rows = {
        ("CIFAR-10", noise): _among_arms(setting, noise, shown.referee, cheap, cifar_tables.REFEREE)
        for noise in shown.referee
    }
    for name, change in (("rounded", "int4"), ("fine-tuned", cifar.FINE_TUNED)):
        for noise in cifar.NOISES:
            row = _after(f"{setting}, {TEXTS[name]}", shown.changed, (0.95, noise), change, changed)
            rows[f"CIFAR-10, {name}", noise] = row
    for noise in cifar.NOISES:
        own, claim = shown.corrupted[0.95, noise], corrupting[0.95, noise]
        values = {name: cifar_tables.corrupted(own, arm) for arm, name in cifar_tables.SURVIVING.items()}
        name = f"{setting}, {TEXTS['corrupted']}"
        rows["CIFAR-10, corrupted", noise] = _shown(name, values, "s2sam", claim, len(corrupting))
    return rows


def of_regime(lines: Sequence[Line]) -> Rows:
    """Return the rows of the paper's own regime, that in which its gain is the largest first."""
    if regime_page.standing(lines):
        return {}
    runs, group, name = regime_page.complete(lines), regime_page.GROUP, regime_page.name
    found, other, rows = arms.claims(runs, (group,)), regime_page.at_other_rho(lines), {}
    for place, own in runs.items():
        row = _among_arms(f"CIFAR-10, 45,000 images, {name(place)}", place, runs, found, group)
        if place in other and row.rival:
            ours = tuple(judged.paired(other[place], own.values(row.rival.name)))
            rival = replace(row.rival, ours=replace(row.rival.ours, nearly=ours))
            row = replace(row, rival=rival, nearly=tuple(judged.paired(other[place], own.values(PLAIN))))
        rows[f"regime, {name(place)}", RIGHT] = row
    return rows


def _among_arms(
    setting: str,
    key: judged.Name,
    runs: Mapping[judged.Name, arms.Runs],
    found: Mapping[judged.Name, arms.Claims],
    group: arms.Group,
) -> Row:
    """Return the row of a study that claims each arm's difference to plain, and S²-SAM's to each; none with S²-SAM is a rival."""
    own, claims, family = runs[key], found[key], sum(map(len, found.values()))
    name = judged.chosen({arm: own.values(arm) for arm in group.others if OURS not in arm})
    gain, ours = (Difference(claim.gaps, claim.sure) for claim in (claims[name, PLAIN], claims[OURS, name]))
    rival = Rival(referee_page.NAMES.get(name, name), gain, ours)
    return Row(setting, tuple(own.values(PLAIN)), claims[OURS, PLAIN], family, rival)


def _after(
    setting: str,
    runs: Mapping[survives_page.Setting, survives_page.Runs],
    place: survives_page.Setting,
    change: str,
    found: Mapping[tuple[survives_page.Setting, str], judged.Claim],
) -> Row:
    """Return the row of nets that are changed after training, each arm at its ρ of the change."""
    own = runs[place]
    values = {arm: own.test(arm, own.chosen(arm, change), change) for arm in survives.ARMS}
    row = _shown(setting, values, "s2sam", found[place, change], len(found))
    return replace(row, by_change=tuple(own.by_change("s2sam", own.chosen("s2sam", change), change)))


def _shown(
    setting: str,
    values: Mapping[str, Sequence[float]],
    ours: str,
    claim: judged.Claim,
    family: int,
    sure: Iterable[str] = (),
) -> Row:
    """Return the row of a study that claims nothing of S²-SAM's difference to others.

    Args:
        values: of each arm, seed by seed.
        sure: the arms whose difference to plain is claimed, and sure.
    """
    name = judged.chosen({arm: own for arm, own in values.items() if arm not in (PLAIN, ours)})
    gain = Difference(tuple(judged.paired(values[name], values[PLAIN])), name in set(sure))
    rival = Rival(_name(name), gain, Difference(tuple(judged.paired(values[ours], values[name]))))
    return Row(setting, tuple(values[PLAIN]), claim, family, rival)


def _name(arm: str) -> str:
    """Return the name of an arm of a study that has short ones, as the other pages have it."""
    long = {"sam": "SAM, half the epochs", "late": "late SAM"}.get(arm, arm)
    return referee_page.NAMES.get(long, label(long))
