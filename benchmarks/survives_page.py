"""The page of what survives, docs/survives.md, with every number from results/survives.jsonl.

python benchmarks/survives_page.py
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import judged
from survives import ARMS, CHANGES, CHOICE, DATA, NOISES, SEEDS, SPARSITIES, measured

from flatsparse.common.files import write_atomic
from flatsparse.experiments.evaluate.changes import AS_TRAINED, BACK
from flatsparse.experiments.labels import label
from flatsparse.experiments.stats import mean_interval

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
    own: Runs, arms: Sequence[str], *, of_change: bool, sure: Collection[str] = (), changes: Sequence[str] = CHANGES
) -> str:
    """Return a table of a setting: plain accuracies, and the differences of arms after each change.

    Args:
        sure: the changes of S²-SAM's that have a star.
        changes: the last is fine-tuning, which has a way back.
    """
    head = ["after", "plain", *(NAMES[arm] for arm in arms)]
    rows = []
    for change in (AS_TRAINED, *changes, f"{changes[-1]} {BACK}"):
        cells = [change, judged.mean(own.test("plain", None, change))]
        for arm in arms:
            rho = own.chosen(arm, change if of_change else AS_TRAINED)
            star = "\\*" if arm == "s2sam" and change in sure else ""
            cells.append(f"{judged.difference(own.gaps(arm, rho, change))}{star} ({rho:g})")
        rows.append(cells)
    return judged.table(head, rows)


def setting_tables(
    runs: Mapping[Setting, Runs],
    found: Mapping[tuple[Setting, str], judged.Claim],
    changes: Sequence[str] = CHANGES,
) -> str:
    """Return the two tables of each setting: with the ρ of the accuracy, and with that of the change."""
    arms = [arm for arm in ARMS if arm != "plain" and all(own.radii(arm) for own in runs.values())]
    tables = []
    for (sparsity, noise), own in runs.items():
        place = "Dense" if not sparsity else f"RigL at {sparsity:.0%}"
        tables.append(f"### {place}, {'20 % of the labels wrong' if noise else 'right labels'}")
        sure = [change for (setting, change), claim in found.items() if setting == (sparsity, noise) and claim.sure]
        for of_change, text in ((False, "ρ of the accuracy:"), (True, "ρ of the change:")):
            marked = sure if of_change else ()
            tables += [text, setting_table(own, arms, of_change=of_change, sure=marked, changes=changes)]
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
        **summary(runs, found),
    )


def summary(
    runs: Mapping[Setting, Runs],
    found: Mapping[tuple[Setting, str], judged.Claim],
    fine_tuned: str = CHANGES[-1],
) -> dict[str, Any]:
    """Return the numbers of the sentences above the tables."""
    sure = {noise: [(s, c) for (s, c), claim in found.items() if s[1] == noise and claim.sure] for noise in NOISES}
    right = [own for (_, noise), own in runs.items() if noise == NOISES[0]]

    def ahead(arm: str) -> int:
        """The claims in which an arm has the larger mean difference, each at its own ρ of the change."""
        return sum(_gain(runs[s], arm, c) > _gain(runs[s], "s2sam", c) for s, c in found)

    def lost(arm: str) -> str:
        ends = [[own.test(arm, own.chosen(arm, AS_TRAINED), name) for name in (AS_TRAINED, "int4")] for own in right]
        return ", ".join(f"{statistics.fmean(before) - statistics.fmean(after):.1f}" for before, after in ends)

    unsure = [claim for (s, _), claim in found.items() if s[1] == NOISES[0] and not claim.sure]
    forgotten = [mean_interval(own.gaps("s2sam", own.chosen("s2sam", AS_TRAINED), fine_tuned)) for own in runs.values()]
    return {
        "significant": sum(map(len, sure.values())),
        "each": len(found) // len(NOISES),
        "sure_right": len(sure[NOISES[0]]),
        "sure_wrong": len(sure[NOISES[1]]),
        "unsure_right": len(unsure),
        "no_gain": sum(claim.no_gain for claim in unsure),
        "right": judged.listed(f"{c} ({f'RigL {s[0]:.0%}' if s[0] else 'dense'})" for s, c in sure[NOISES[0]]),
        "lost_plain": lost("plain"),
        "lost_s2sam": lost("s2sam"),
        "sam_ahead": ahead("sam"),
        "late_ahead": ahead("late"),
        "random_ahead": ahead("random"),
        "forget": sum(one.high < 0 for one in forgotten),
        "remember": sum(one.low > 0 for one in forgotten),
        "settings": len(runs),
    }


def _gain(own: Runs, arm: str, change: str) -> float:
    """The mean difference of an arm to plain training after a change, at the ρ of the change."""
    return statistics.fmean(own.gaps(arm, own.chosen(arm, change), change))


if __name__ == "__main__":
    if not DATA.exists():
        raise SystemExit("no runs yet: python benchmarks/survives.py")
    write_atomic(PAGE, rendered(measured()).encode())
