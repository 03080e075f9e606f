"""The page of what survives, docs/survives.md, with every number from results/survives.jsonl.

python benchmarks/survives_page.py
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import judged
from survives import ARMS, CHANGES, CHOICE, DATA, NOISES, SEEDS, SPARSITIES, measured

from flatsparse.common.files import write_atomic
from flatsparse.experiments.evaluate.changes import AS_TRAINED, BACK
from flatsparse.experiments.labels import label

ROOT = Path(__file__).parent.parent
PAGE, TEMPLATE = ROOT / "docs" / "survives.md", Path(__file__).with_name("survives_page.md")
NAMES = {**{name: label(name) for name in ARMS}, "sam": "SAM, half the epochs", "late": "late SAM", "random": "noise"}

Line = Mapping[str, Any]
Setting = tuple[float, float]  # sparsity, share of wrong labels


@dataclass(frozen=True)
class Runs:
    """The lines of one setting, by arm, ρ and seed; the seeds that are compared, and those for the choice of ρ."""

    lines: Mapping[tuple[str, float | None, int], Line]
    compared: Sequence[int] = SEEDS
    choice: Sequence[int] = CHOICE

    @classmethod
    def of(
        cls, lines: Iterable[Line], setting: Setting, compared: Sequence[int] = SEEDS, choice: Sequence[int] = CHOICE
    ) -> Runs:
        """Return the runs of a setting."""
        own = (line for line in lines if (line["sparsity"], line["noise"]) == setting)
        return cls({(line["arm"], line["rho"], line["seed"]): line for line in own}, compared, choice)

    def radii(self, arm: str) -> list[float | None]:
        """The ρ of an arm that have runs, from small to large."""
        found = {rho for name, rho, _ in self.lines if name == arm}
        return sorted(found, key=lambda rho: rho or 0.0)

    def chosen(self, arm: str, change: str) -> float | None:
        """The ρ of the best validation accuracy after a change, on the seeds for the choice; the smaller of equals."""
        radii = self.radii(arm)  # from small to large
        if len(radii) == 1:  # which needs no runs for a choice
            return radii[0]
        return judged.chosen(
            {rho: [self.lines[arm, rho, seed]["validation"][change] for seed in self.choice] for rho in radii}
        )

    def test(self, arm: str, rho: float | None, change: str) -> list[float]:
        """The test accuracies of the compared seeds."""
        return [self.lines[arm, rho, seed]["test"][change] for seed in self.compared]

    def gaps(self, arm: str, rho: float | None, change: str) -> list[float]:
        """The differences to plain training, seed by seed."""
        return judged.paired(self.test(arm, rho, change), self.test("plain", None, change))

    def by_change(self, arm: str, rho: float | None, change: str) -> list[float]:
        """The part of the differences that the change makes: without those as trained, of the same nets."""
        return judged.paired(self.gaps(arm, rho, change), self.gaps(arm, rho, AS_TRAINED))


def by_setting(lines: Sequence[Line]) -> dict[Setting, Runs]:
    """Return the runs of each setting."""
    return {(sparsity, noise): Runs.of(lines, (sparsity, noise)) for noise in NOISES for sparsity in SPARSITIES}


def claims(runs: Mapping[Setting, Runs], changes: Sequence[str] = CHANGES) -> dict[tuple[Setting, str], judged.Claim]:
    """S²-SAM's differences to plain training at the ρ of the change, judged over all settings and changes."""
    return judged.claims(
        {
            (setting, change): own.gaps("s2sam", own.chosen("s2sam", change), change)
            for setting, own in runs.items()
            for change in changes
        }
    )


def setting_table(
    own: Runs, arms: Sequence[str], changes: Sequence[str], found: Mapping[str, judged.Claim] | None = None
) -> str:
    """Return a table of a setting: plain accuracies, and the differences of arms after each change.

    Args:
        changes: the last is fine-tuning, which has a way back.
        found: what is claimed of S²-SAM after each change, at the ρ of the change, which is that of the table then;
            without it the ρ is that of the accuracy.
    """
    head = ["after", "plain", *(NAMES[arm] for arm in arms)]
    rows = []
    for change in (AS_TRAINED, *changes, f"{changes[-1]} {BACK}"):
        cells = [change, judged.mean(own.test("plain", None, change))]
        for arm in arms:
            rho = own.chosen(arm, AS_TRAINED if found is None else change)
            star = "\\*" if arm == "s2sam" and found and change in found and found[change].sure else ""
            cells.append(f"{judged.difference(own.gaps(arm, rho, change))}{star} ({rho:g})")
        if found is not None:
            cells.append(found[change].verdict if change in found else "")
        rows.append(cells)
    return judged.table(head if found is None else [*head, "ruled out of S²-SAM"], rows)


def setting_tables(
    runs: Mapping[Setting, Runs],
    found: Mapping[tuple[Setting, str], judged.Claim],
    changes: Sequence[str] = CHANGES,
) -> str:
    """Return the two tables of each setting: with the ρ of the accuracy, and with that of the change."""
    arms = [arm for arm in ARMS if arm != "plain" and all(own.radii(arm) for own in runs.values())]
    tables = []
    for (sparsity, noise), own in runs.items():
        where = f"RigL at {judged.place(sparsity)}" if sparsity else "Dense"
        tables.append(f"### {where}, {'20 % of the labels wrong' if noise else 'right labels'}")
        claimed = {change: claim for (setting, change), claim in found.items() if setting == (sparsity, noise)}
        tables += ["ρ of the accuracy:", setting_table(own, arms, changes)]
        tables += ["ρ of the change:", setting_table(own, arms, changes, claimed)]
    return "\n\n".join(tables)


def rendered(lines: Sequence[Line]) -> str:
    """Return the page."""
    runs = by_setting(lines)
    found = claims(runs)
    return TEMPLATE.read_text(encoding="utf-8").format(
        tables=setting_tables(runs, found),
        runs=len(lines),
        seeds=len(SEEDS),
        claims=len(found),
        verdict="\n".join(f"- {sentence}" for sentence in counts(runs, found)),
        **summary(runs, found),
    )


def summary(
    runs: Mapping[Setting, Runs],
    found: Mapping[tuple[Setting, str], judged.Claim],
    fine_tuned: str = CHANGES[-1],
) -> dict[str, Any]:
    """Return the numbers of the sentences above the tables."""

    def ahead(arm: str) -> int:
        """The claims in which an arm has the larger mean difference, each at its own ρ of the change."""
        return sum(_gain(runs[s], arm, c) > _gain(runs[s], "s2sam", c) for s, c in found)

    told: dict[str, Any] = {}
    for noise, name in zip(NOISES, ("right", "wrong"), strict=True):
        own = {(sparsity, change): one for ((sparsity, labels), change), one in found.items() if labels == noise}
        sure = [key for key, claim in own.items() if claim.sure]
        told |= {
            f"each_{name}": len(own),
            f"sure_{name}": len(sure),
            f"which_{name}": with_sparsities(sure),
            f"unsure_{name}": len(own) - len(sure),
            f"no_gain_{name}": sum(claim.no_gain for claim in own.values()),
        }
    forgotten = {
        judged.place(*setting): own.by_change("s2sam", own.chosen("s2sam", AS_TRAINED), fine_tuned)
        for setting, own in runs.items()
    }
    return {
        **told,
        "significant": sum(claim.sure for claim in found.values()),
        "sam_ahead": ahead("sam"),
        "late_ahead": ahead("late"),
        "random_ahead": ahead("random"),
        "forgetting": "; ".join(f"{name} {judged.difference(gaps)}" for name, gaps in forgotten.items()),
    }


def with_sparsities(keys: Iterable[tuple[float, str]]) -> str:
    """Return changes, each with the sparsities where it is one of some.

    >>> with_sparsities([(0.0, "int4"), (0.9, "int4")])
    'int4 (dense, 90 %)'
    """
    places: dict[str, list[str]] = {}
    for sparsity, change in keys:
        places.setdefault(change, []).append(judged.place(sparsity))
    return judged.listed(f"{change} ({', '.join(own)})" for change, own in places.items())


def counts(runs: Mapping[Setting, Runs], found: Mapping[tuple[Setting, str], judged.Claim]) -> list[str]:
    """Return whether what the plan names as counting holds, in the settings with right labels."""
    right = {sparsity: own for (sparsity, noise), own in runs.items() if noise == NOISES[0]}
    texts, held = [], 0
    for sparsity, own in right.items():
        rho = own.chosen("s2sam", AS_TRAINED)
        clean = statistics.fmean(own.gaps("s2sam", rho, AS_TRAINED))
        plain, ours = (
            statistics.fmean(own.test(*arm, AS_TRAINED)) - statistics.fmean(own.test(*arm, "int4"))
            for arm in (("plain", None), ("s2sam", rho))
        )
        holds = clean >= -judged.MARGIN and plain > 0 and ours <= plain / 2
        held += holds
        kept = judged.difference(own.by_change("s2sam", rho, "int4"))
        lost = f"{judged.mean([ours])} lost at 4 bits instead of {judged.mean([plain])}, {kept}"
        where = judged.place(sparsity) + (", held" if holds else "")
        texts.append(f"{where}: {judged.signed(clean)} as trained, {lost}")
    sure = sum(claim.sure for (setting, _), claim in found.items() if setting[1] == NOISES[0])
    against = "does not hold" if sure else "holds"
    return [
        "**What survives, for**: with right labels, at the ρ of the accuracy, no mean loss beyond half a point as trained, and"
        " at most half of what plain nets lose at 4 bits, in means; the intervals are of the part of the difference that rounding"
        f" makes. It holds in {held} of {len(right)} settings ({'; '.join(texts)}).",
        f"**What survives, against**: no claim is sure with right labels. It {against}: {sure} are.",
    ] * bool(right)


def _gain(own: Runs, arm: str, change: str) -> float:
    """The mean difference of an arm to plain training after a change, at the ρ of the change."""
    return statistics.fmean(own.gaps(arm, own.chosen(arm, change), change))


if __name__ == "__main__":
    if not DATA.exists():
        raise SystemExit("no runs yet: python benchmarks/survives.py")
    write_atomic(PAGE, rendered(measured()).encode())
