"""Arms of a registered plan, each at its chosen candidate: accuracies, claims, and the table of a page."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import judged

Line = Mapping[str, Any]
Settings = Mapping[str, Any]
Claims = Mapping[tuple[str, str], judged.Claim]  # of an arm minus another

UNITS = {"rho": "ρ", "weight_decay": "decay", "label_smoothing": "smoothing", "loss_budget": "budget", "penalty": "λ"}


@dataclass(frozen=True)
class Runs:
    """The runs of one setting.

    Attributes:
        lines: by arm, candidate and seed.
        compared: the seeds whose test accuracy is compared.
        choice: the seeds by whose validation accuracy candidates are chosen.
    """

    lines: Mapping[tuple[str, int, int], Line]
    compared: Sequence[int]
    choice: Sequence[int]

    @classmethod
    def of(cls, lines: Iterable[Line], compared: Sequence[int], choice: Sequence[int]) -> Runs:
        """Return the runs of lines that are all of one setting."""
        return cls({(line["arm"], line["candidate"], line["seed"]): line for line in lines}, compared, choice)

    def candidates(self, arm: str) -> dict[int, Settings]:
        """What the candidates of an arm set, in the order of the plan."""
        found = {candidate: line["settings"] for (name, candidate, _), line in self.lines.items() if name == arm}
        return dict(sorted(found.items()))

    def chosen(self, arm: str) -> int:
        """The candidate of the best mean validation accuracy, the earlier of equals; the only one needs no runs for it."""
        candidates = list(self.candidates(arm))
        if len(candidates) == 1:
            return candidates[0]
        return judged.chosen(
            {
                candidate: [self.lines[arm, candidate, seed]["validation"] for seed in self.choice]
                for candidate in candidates
            }
        )

    def validation(self, arm: str) -> dict[int, float]:
        """The mean validation accuracy of each candidate, on the seeds for the choice."""
        return {
            candidate: statistics.fmean(self.lines[arm, candidate, seed]["validation"] for seed in self.choice)
            for candidate in self.candidates(arm)
        }

    def settings(self, arm: str) -> Settings:
        """What the chosen candidate sets."""
        return self.candidates(arm)[self.chosen(arm)]

    def at_an_end(self, arm: str) -> bool:
        """True where the first or the last of several candidates that differ in one setting only is chosen."""
        candidates = self.candidates(arm)
        varied = {
            name for one in candidates.values() for name, value in one.items() if value != candidates[0].get(name)
        }
        return len(varied) == 1 and self.chosen(arm) in (0, len(candidates) - 1)

    def values(self, arm: str, entry: str = "test", candidate: int | None = None) -> list[float]:
        """An entry of a candidate's lines, of the compared seeds; of the chosen candidate unless another is given."""
        candidate = self.chosen(arm) if candidate is None else candidate
        return [self.lines[arm, candidate, seed][entry] for seed in self.compared]

    def gaps(self, arm: str, base: str) -> list[float]:
        """The differences of test accuracy between two arms, seed by seed."""
        return judged.paired(self.values(arm), self.values(base))


@dataclass(frozen=True)
class Group:
    """Arms that are compared with each other.

    Attributes:
        base: the plain one, which every other is compared with.
        ours: the one that is compared with every other.
        others: all but ``base``, with ``ours``.
    """

    base: str
    ours: str
    others: tuple[str, ...]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The arms whose difference is claimed: each minus the plain one, and ours minus each."""
        rivals = [(self.ours, arm) for arm in self.others if arm != self.ours]
        return [*((arm, self.base) for arm in self.others), *rivals]


def claims(
    runs: Mapping[judged.Name, Runs], groups: Sequence[Group]
) -> dict[judged.Name, dict[tuple[str, str], judged.Claim]]:
    """Judge the pairs of all groups in all settings as one family; return the claims of each setting."""
    gaps = {(key, pair): own.gaps(*pair) for key, own in runs.items() for group in groups for pair in group.pairs}
    found: dict[judged.Name, dict[tuple[str, str], judged.Claim]] = {key: {} for key in runs}
    for (key, pair), claim in judged.claims(gaps).items():
        found[key][pair] = claim
    return found


def table(runs: Runs, groups: Sequence[Group], found: Claims, names: Mapping[str, str], epochs: int) -> str:
    """Return the table of a setting, with a dagger where the first or the last of several candidates was chosen.

    Args:
        names: of the arms, as a reader sees them.
        epochs: of plain training, which a candidate with as many does not name.
    """
    ours = f"{groups[0].ours} minus it"
    head = ["arm", "chosen", "gradients", "train %", "test %", "to plain", "ruled out", ours, "ruled out"]
    rows = []
    for group in groups:
        plain = statistics.fmean(runs.values(group.base, "gradients"))
        for arm in (group.base, *group.others):
            gradients = statistics.fmean(runs.values(arm, "gradients"))
            rows.append(
                [
                    names.get(arm, arm),
                    _chosen_text(runs, arm, epochs),
                    f"{gradients:.0f} ({gradients / plain:.2f})",
                    judged.mean(runs.values(arm, "train_accuracy")),
                    judged.mean(runs.values(arm)),
                    *claimed(found.get((arm, group.base))),
                    *claimed(found.get((group.ours, arm)) if arm != group.base else None),
                ]
            )
    return judged.table(head, rows)


def settings_text(settings: Settings, epochs: int) -> str:
    """Return what a candidate sets beside what its arm's name says.

    >>> settings_text({"sharpness": "sam", "rho": 0.1, "epochs": 20}, 40), settings_text({"stop": True}, 40)
    ('ρ 0.1, 20 epochs', '')
    """
    texts = [f"{UNITS[name]} {value:g}" for name, value in settings.items() if name in UNITS]
    if settings.get("epochs", epochs) != epochs:
        texts.append(f"{settings['epochs']} epochs")
    return ", ".join(texts)


def _chosen_text(runs: Runs, arm: str, epochs: int) -> str:
    """Return the settings of the chosen candidate; of early stopping, the mean epoch that was kept."""
    texts = [settings_text(runs.settings(arm), epochs) + ("†" if runs.at_an_end(arm) else "")]
    if runs.settings(arm).get("stop"):
        texts.append(f"epoch {judged.mean(runs.values(arm, 'epoch'), 0)}")
    return ", ".join(filter(None, texts))


def claimed(claim: judged.Claim | None, places: int = 1) -> list[str]:
    """Return a difference and what is ruled out, as two cells; empty where nothing is claimed."""
    return ["", ""] if claim is None else [claim.written(places), claim.verdict]
