"""What the page of CIFAR-10 shows of each part of its plan: the runs of complete settings, claims about them, and tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import arms
import cifar
import judged
import survives_page
from judged import place
from planned import missing

from flatsparse.experiments.data.corruptions import MAIN
from flatsparse.experiments.evaluate.changes import AS_TRAINED, BACK

Line = Mapping[str, Any]
Setting = tuple[float, float]  # sparsity, share of wrong labels
ALL_CHANGES = (*cifar.CHANGES, cifar.FINE_TUNED)
# The arms whose nets are changed, as the runs of survives.py name them.
SURVIVING = {
    "plain": "plain",
    "S²-SAM": "s2sam",
    "SAM, half the epochs": "sam",
    "late SAM": "late",
    "random": "random",
}
NAMES = {arm: survives_page.NAMES[name] for arm, name in SURVIVING.items()}
REFEREE = arms.Group("plain", "S²-SAM", tuple(arm for arm in cifar.ARMS if arm != "plain"))


@dataclass(frozen=True)
class Standing:
    """How far the runs of the plan are.

    Attributes:
        whole: how many there are; while some for choices are missing, those of one candidate for each arm are counted.
        left: those without a line.
        choosing: whether some for choices are among them.
    """

    whole: int
    left: tuple[cifar.Cell, ...]
    choosing: bool

    @classmethod
    def of(cls, lines: Sequence[Line]) -> Standing:
        """Return how far lines are."""
        choice = list(cifar.for_choice())
        left = missing(lines, choice)
        compared = list(cifar.compared([] if left else lines))
        later = missing(lines, compared)
        return cls(len(choice) + len(compared), (*left, *later), bool(left))

    @property
    def text(self) -> str:
        """How many runs are there; empty when all are."""
        if not self.left:
            return ""
        of = "at least " if self.choosing else ""
        return f"{self.whole - len(self.left):,} of {of}{self.whole:,} runs of the plan are measured"


@dataclass(frozen=True)
class Shown:
    """The runs of the settings that lack none.

    Attributes:
        changed: those whose nets are changed, as runs of ``survives.py``.
        corrupted: the same, by arm and candidate.
        referee: those of all arms, for each share of wrong labels.
        sweep: plain and S²-SAM with right labels, for each sparsity.
    """

    changed: Mapping[Setting, survives_page.Runs]
    corrupted: Mapping[Setting, arms.Runs]
    referee: Mapping[float, arms.Runs]
    sweep: Mapping[float, arms.Runs]

    @classmethod
    def of(cls, lines: Sequence[Line]) -> Shown:
        """Return the runs of complete settings."""
        lacking = {(cell.sparsity, cell.noise, cell.arm) for cell in Standing.of(lines).left}

        def runs(sparsity: float, noise: float, names: Iterable[str]) -> arms.Runs | None:
            wanted = set(names)
            if any((sparsity, noise, arm) in lacking for arm in wanted):
                return None
            own = [
                one for one in lines if (one["sparsity"], one["noise"]) == (sparsity, noise) and one["arm"] in wanted
            ]
            return arms.Runs.of(own, cifar.SEEDS_BESIDE if sparsity in cifar.BESIDE else cifar.SEEDS, cifar.CHOICE)

        order = sorted(cifar.SPARSITIES)
        changed = {(s, noise): runs(s, noise, SURVIVING) for noise in cifar.NOISES for s in order}
        corrupted = {setting: own for setting, own in changed.items() if own is not None}
        referee = {noise: runs(cifar.SPARSITIES[0], noise, cifar.ARMS) for noise in cifar.NOISES}
        sweep = {s: runs(s, cifar.NOISES[0], ("plain", "S²-SAM")) for s in sorted((*order, *cifar.BESIDE))}
        return cls(
            {setting: as_surviving(own, setting) for setting, own in corrupted.items()},
            corrupted,
            {noise: own for noise, own in referee.items() if own is not None},
            {sparsity: own for sparsity, own in sweep.items() if own is not None},
        )


def as_surviving(runs: arms.Runs, setting: Setting) -> survives_page.Runs:
    """Return runs in the form of those of ``survives.py``; after fine-tuning they are chosen by the accuracy as trained."""
    lines = []
    for (arm, _, seed), line in runs.lines.items():
        own = dict.fromkeys((AS_TRAINED, cifar.FINE_TUNED, f"{cifar.FINE_TUNED} {BACK}"), line["validation"])
        lines.append(
            {
                **dict(zip(("sparsity", "noise"), setting, strict=True)),
                "arm": SURVIVING[arm],
                "rho": line["settings"].get("rho"),
                "seed": seed,
                "test": line["after"]["test"],
                "validation": {**line["after"]["validation"], **own},
            }
        )
    return survives_page.Runs.of(lines, setting, runs.compared, runs.choice)


def corrupted(runs: arms.Runs, arm: str, kind: str | None = None) -> list[float]:
    """Return the accuracies on a corruption, or their means over all, of an arm at the ρ of the accuracy, seed by seed."""
    found = [runs.lines[arm, runs.chosen(arm), seed]["corrupted"] for seed in runs.compared]
    return [statistics.fmean(line.values()) if kind is None else line[kind] for line in found]


def on_corrupted(runs: arms.Runs, arm: str, kind: str | None = None) -> list[float]:
    """Return the differences to plain training on corrupted images, seed by seed."""
    return judged.paired(corrupted(runs, arm, kind), corrupted(runs, "plain", kind))


def claims_on_corrupted(shown: Shown) -> dict[Setting, judged.Claim]:
    """Judge S²-SAM's differences to plain training on corrupted images."""
    return judged.claims({setting: on_corrupted(own, "S²-SAM") for setting, own in shown.corrupted.items()})


def claims_of_sweep(shown: Shown) -> dict[float, judged.Claim]:
    """Judge S²-SAM's differences to plain training over sparsity."""
    return judged.claims({sparsity: own.gaps("S²-SAM", "plain") for sparsity, own in shown.sweep.items()})


def corruption_tables(shown: Shown, found: Mapping[Setting, judged.Claim]) -> str:
    """Return the table of means over all corruptions, and that of S²-SAM's difference for each."""
    others = [arm for arm in SURVIVING if arm not in ("plain", "S²-SAM")]
    head = ["nets", "plain, clean", "plain, corrupted", "S²-SAM", "ruled out", "S²-SAM, clean"]
    rows = []
    for setting, own in shown.corrupted.items():
        clean, claim = own.gaps("S²-SAM", "plain"), found[setting]
        means = judged.mean(own.values("plain")), judged.mean(corrupted(own, "plain"))
        beside = [judged.difference(on_corrupted(own, arm)) for arm in others]
        rows.append([place(*setting), *means, claim.text, claim.verdict, judged.difference(clean), *beside])
    whole = judged.table([*head, *(NAMES[arm] for arm in others)], rows)
    kinds = MAIN
    each = [
        [
            kind.replace("_", " "),
            *(judged.difference(on_corrupted(own, "S²-SAM", kind)) for own in shown.corrupted.values()),
        ]
        for kind in kinds
    ]
    return f"{whole}\n\nS²-SAM's difference for each corruption:\n\n" + judged.table(
        ["corruption", *(place(*setting) for setting in shown.corrupted)], each
    )


def sweep_table(shown: Shown, found: Mapping[float, judged.Claim]) -> str:
    """Return the table over sparsity."""
    rows = [
        [
            place(sparsity),
            str(len(own.compared)),
            judged.mean(own.values("plain")),
            judged.mean(own.values("S²-SAM")),
            f"{own.settings('S²-SAM')['rho']:g}" + ("†" if own.at_an_end("S²-SAM") else ""),
            found[sparsity].text,
            found[sparsity].verdict,
            ", ".join(f"{value:.2f}" for value in own.validation("S²-SAM").values()),
        ]
        for sparsity, own in shown.sweep.items()
    ]
    radii = ", ".join(f"{rho:g}" for rho in cifar.RHOS)
    head = [
        "sparsity",
        "n",
        "plain %",
        "S²-SAM %",
        "ρ",
        "S²-SAM minus plain",
        "ruled out",
        f"validation % at ρ {radii}",
    ]
    return judged.table(head, rows)
