"""The page of what survives, docs/survives.md, with every number from results/survives.jsonl.

python benchmarks/survives_page.py
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from survives import ARMS, CHANGES, CHOICE, DATA, NOISES, SEEDS, SPARSITIES, measured

from flatsparse.common.files import write_atomic
from flatsparse.experiments.equivalence import below
from flatsparse.experiments.evaluate.changes import AS_TRAINED
from flatsparse.experiments.labels import label
from flatsparse.experiments.stats import holm, mean_interval, p_value

ROOT = Path(__file__).parent.parent
PAGE, TEMPLATE = ROOT / "docs" / "survives.md", Path(__file__).with_name("survives_page.md")
MARGIN = 0.5  # points
NAMES = {**{name: label(name) for name in ARMS}, "sam": "SAM, half the epochs", "late": "late SAM", "random": "noise"}

Line = Mapping[str, Any]
Setting = tuple[float, float]  # sparsity, share of wrong labels


@dataclass(frozen=True)
class Runs:
    """The lines of one setting, by arm, ρ and seed."""

    lines: Mapping[tuple[str, float | None, int], Line]

    @classmethod
    def of(cls, lines: Iterable[Line], setting: Setting) -> Runs:
        """Return the runs of a setting."""
        own = (line for line in lines if (line["sparsity"], line["noise"]) == setting)
        return cls({(line["arm"], line["rho"], line["seed"]): line for line in own})

    def radii(self, arm: str) -> list[float | None]:
        """The ρ of an arm that have runs, from small to large."""
        found = {rho for name, rho, _ in self.lines if name == arm}
        return sorted(found, key=lambda rho: rho or 0.0)

    def chosen(self, arm: str, change: str) -> float | None:
        """The ρ of the best validation accuracy after a change, on the seeds for the choice; the smaller of equals."""

        def score(rho: float | None) -> float:
            return statistics.fmean(self.lines[arm, rho, seed]["validation"][change] for seed in CHOICE)

        return max(self.radii(arm), key=score)  # max takes the first of equals

    def test(self, arm: str, rho: float | None, change: str) -> list[float]:
        """The test accuracies of the compared seeds."""
        return [self.lines[arm, rho, seed]["test"][change] for seed in SEEDS]

    def gaps(self, arm: str, rho: float | None, change: str) -> list[float]:
        """The differences to plain training, seed by seed."""
        return [a - b for a, b in zip(self.test(arm, rho, change), self.test("plain", None, change), strict=True)]


def by_setting(lines: Sequence[Line]) -> dict[Setting, Runs]:
    """Return the runs of each setting."""
    return {(sparsity, noise): Runs.of(lines, (sparsity, noise)) for noise in NOISES for sparsity in SPARSITIES}


def claims(runs: Mapping[Setting, Runs]) -> dict[tuple[Setting, str], float]:
    """Holm's p of S²-SAM's differences to plain training at the ρ of the change, over all settings and changes."""
    gaps = {
        (setting, change): own.gaps("s2sam", own.chosen("s2sam", change), change)
        for setting, own in runs.items()
        for change in CHANGES
    }
    return dict(zip(gaps, holm([p_value(values) for values in gaps.values()]), strict=True))


def setting_table(own: Runs, arms: Sequence[str], *, of_change: bool, p: Mapping[str, float] | None = None) -> str:
    """Return a table of a setting: plain accuracies, and the differences of arms after each change."""
    head = ["after", "plain", *(NAMES[arm] for arm in arms)]
    rows = []
    for change in (AS_TRAINED, *CHANGES, f"{CHANGES[-1]} back"):
        cells = [change, f"{statistics.fmean(own.test('plain', None, change)):.1f}"]
        for arm in arms:
            rho = own.chosen(arm, change if of_change else AS_TRAINED)
            star = "\\*" if p and arm == "s2sam" and p.get(change, 1.0) < 0.05 else ""
            cells.append(f"{_difference(own.gaps(arm, rho, change))}{star} ({rho:g})")
        rows.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def rendered(lines: Sequence[Line]) -> str:
    """Return the page."""
    runs = by_setting(lines)
    arms = [arm for arm in ARMS if arm != "plain" and all(own.radii(arm) for own in runs.values())]
    p, tables = claims(runs), []
    for (sparsity, noise), own in runs.items():
        place = "Dense" if not sparsity else f"RigL at {sparsity:.0%}"
        tables.append(f"### {place}, {'20 % of the labels wrong' if noise else 'right labels'}")
        marks = {change: value for (setting, change), value in p.items() if setting == (sparsity, noise)}
        for of_change, text in ((False, "ρ of the accuracy:"), (True, "ρ of the change:")):
            tables += [text, setting_table(own, arms, of_change=of_change, p=marks if of_change else None)]
    return TEMPLATE.read_text(encoding="utf-8").format(
        tables="\n\n".join(tables), runs=len(lines), seeds=len(SEEDS), claims=len(p), **summary(runs, p)
    )


def summary(runs: Mapping[Setting, Runs], p: Mapping[tuple[Setting, str], float]) -> dict[str, Any]:
    """Return the numbers of the sentences above the tables."""
    sure = {noise: [(s, c) for (s, c), value in p.items() if s[1] == noise and value < 0.05] for noise in NOISES}
    right = [own for (_, noise), own in runs.items() if noise == NOISES[0]]

    def ahead(arm: str) -> int:
        """The claims in which an arm has the larger mean difference, each at its own ρ of the change."""
        return sum(_gain(runs[s], arm, c) > _gain(runs[s], "s2sam", c) for s, c in p)

    def lost(arm: str) -> str:
        ends = [[own.test(arm, own.chosen(arm, AS_TRAINED), name) for name in (AS_TRAINED, "int4")] for own in right]
        return ", ".join(f"{statistics.fmean(before) - statistics.fmean(after):.1f}" for before, after in ends)

    unsure = [
        runs[s].gaps("s2sam", runs[s].chosen("s2sam", c), c) for s, c in p if s[1] == NOISES[0] and p[s, c] >= 0.05
    ]
    forgotten = [
        mean_interval(own.gaps("s2sam", own.chosen("s2sam", AS_TRAINED), CHANGES[-1])) for own in runs.values()
    ]
    return {
        "significant": sum(map(len, sure.values())),
        "each": len(p) // len(NOISES),
        "sure_right": len(sure[NOISES[0]]),
        "sure_wrong": len(sure[NOISES[1]]),
        "unsure_right": len(unsure),
        "no_gain": sum(below(gaps, MARGIN) < 0.05 for gaps in unsure),
        "right": ", ".join(f"{c} ({f'RigL {s[0]:.0%}' if s[0] else 'dense'})" for s, c in sure[NOISES[0]]) or "none",
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


def _difference(gaps: Sequence[float]) -> str:
    """Return a mean difference with its interval, bold where that leaves out 0."""
    found = mean_interval(gaps)
    text = f"{found:+.1f}".replace("-", "−")
    return text if found.low <= 0 <= found.high else f"**{text}**"


if __name__ == "__main__":
    if not DATA.exists():
        raise SystemExit("no runs yet: python benchmarks/survives.py")
    write_atomic(PAGE, rendered(measured()).encode())
