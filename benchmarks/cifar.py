"""What sharpness-aware training and its rivals do on CIFAR-10: the runs of the plan in cifar.md, in results/cifar.jsonl.

FLATSPARSE_DATA=DIR python benchmarks/cifar.py --jobs 2   # continues where it stopped
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import judged
from corrupted_copies import accuracies
from early_stopping import measured_run
from planned import Planned, lines_of, run_plan

from flatsparse.experiments.evaluate.changes import AS_TRAINED
from flatsparse.experiments.evaluate.record import evaluate
from flatsparse.experiments.evaluate.settings import Evaluation
from flatsparse.experiments.run.config import RunConfig
from flatsparse.experiments.run.folder import read_metrics
from flatsparse.experiments.run.load import load_run
from flatsparse.experiments.run.loop import train
from flatsparse.experiments.terminal import Console

HERE = Path(__file__).parent
DATA = HERE.parent / "results" / "cifar.jsonl"
CHANGES = ("int8", "int4", "int3", "prune30", "prune50", "noise0.2", "noise0.4")
FINE_TUNED = "finetune1"
CHANGED_ON, CORRUPTED = 2000, 500  # test images
SEEDS, CHOICE = tuple(range(5)), (100, 101)  # compared, and for the choices
NOISES, SPARSITIES, BESIDE = (0.0, 0.2), (0.95, 0.9, 0.0), (0.98, 0.8, 0.5)
SEEDS_BESIDE = SEEDS[:3]
EPOCHS, RHOS = 12, (0.03, 0.1, 0.3)
SHARED = {
    "data": "cifar10",
    "model": f"{HERE / 'small_resnet.py'}:resnet8",
    "train_size": 10_000,
    "validation_size": 2_000,
    "batch_size": 64,
}
Settings = dict[str, Any]
Line = Mapping[str, Any]


def radii(sharpness: str, *, rhos: tuple[float, ...] = RHOS, **more: Any) -> list[Settings]:
    """Return the candidates of a sharpness, one for each ρ."""
    return [{"sharpness": sharpness, "rho": rho, **more} for rho in rhos]


# The candidates of each arm: three at most, of as many gradients as plain training at most. ``stop``: at the best epoch.
SURVIVING: dict[str, list[Settings]] = {
    "plain": [{}],
    "S²-SAM": radii("s2sam"),
    "SAM, half the epochs": radii("sam", epochs=EPOCHS // 2),
    "late SAM": radii("sam", epochs=10, rho_schedule="late"),
    "random": radii("random", rhos=(0.1, 0.5, 2.0)),
}
DECAYS, SMOOTHINGS = (1e-4, 1e-3, 3e-3), (0.1, 0.3, 0.6)
ARMS: dict[str, list[Settings]] = {
    **SURVIVING,
    "early stopping": [{"stop": True}],
    "weight decay": [{"weight_decay": value} for value in DECAYS],
    "label smoothing": [{"label_smoothing": value} for value in SMOOTHINGS],
    "stale": radii("stale", epochs=9),
    "loss budget": [{"sharpness": "s2sam", "rho": 0.3, "loss_budget": budget} for budget in (0.02, 0.1, 0.5)],
    "less the average": radii("less_average"),
    "mask": radii("mask", rhos=(0.1, 0.5, 2.0)),
    "S²-SAM, early stopping": radii("s2sam", stop=True),
    "S²-SAM, weight decay": [{"sharpness": "s2sam", "rho": 0.05, "weight_decay": value} for value in DECAYS],
    "S²-SAM, label smoothing": [{"sharpness": "s2sam", "rho": 0.05, "label_smoothing": value} for value in SMOOTHINGS],
}


@dataclass(frozen=True)
class Cell(Planned):
    """One run of the plan: ``candidate`` is an index among those of the arm."""

    sparsity: float
    noise: float
    arm: str
    candidate: int
    seed: int

    @property
    def settings(self) -> Settings:
        """What the candidate sets."""
        return ARMS[self.arm][self.candidate]

    @property
    def identity(self) -> dict[str, Any]:
        """What the run's line is known by."""
        return {**asdict(self), "settings": self.settings}

    def run(self) -> dict[str, Any]:
        """Train and measure; return what is kept."""
        own = {"epochs": EPOCHS, **self.settings}
        stop = own.pop("stop", False)
        own |= {"method": "rigl", "sparsity": self.sparsity} if self.sparsity else {"method": "dense"}
        own |= {"accelerate": True} if self.sparsity >= 0.9 else {"channels_last": True}
        run = RunConfig.of(**SHARED, **own, label_noise=self.noise, seed=self.seed)
        if changed(self.sparsity, self.noise, self.arm):
            found = trained_and_changed(run, whole=self.seed in SEEDS)
        else:
            found = measured_run(run, stop=stop)
        return {**self.identity, **found}


def trained_and_changed(run: RunConfig, *, whole: bool) -> dict[str, Any]:
    """Train, and return the accuracies as trained and after the changes.

    Args:
        whole: also after fine-tuning, and on corrupted images.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "run"
        result = train(run, place)
        train_accuracy = read_metrics(place, result)[-1].train_accuracy  # during the last epoch, as in the other arms
        after = (*CHANGES, FINE_TUNED) if whole else CHANGES
        settings = Evaluation((place,), after=after, images=CHANGED_ON, jobs=1)
        scores = evaluate(settings, place, Console(quiet=True))["runs"][0]["after"]
        on_corrupted = accuracies(load_run(place), CORRUPTED) if whole else None
    return {
        "epoch": run.schedule.epochs,
        "gradients": result.gradient_evaluations,
        "train_accuracy": train_accuracy,
        "validation": result.validation_accuracy,
        "test": result.test_accuracy,
        "after": {
            "test": {name: one["scores"]["accuracy"] for name, one in scores.items()},
            "validation": {name: one["validation"]["accuracy"] for name, one in scores.items()},
        },
        "corrupted": on_corrupted,
    }


def groups() -> Iterator[tuple[float, float, str]]:
    """Yield the sparsities, shares of wrong labels and arms of the plan."""
    for noise, arm in itertools.product(NOISES, ARMS):
        yield SPARSITIES[0], noise, arm
    yield from itertools.product(SPARSITIES[1:], NOISES, SURVIVING)
    yield from itertools.product(BESIDE, NOISES[:1], ("plain", "S²-SAM"))


def for_choice() -> Iterator[Cell]:
    """Yield the runs that candidates are chosen by, a seed after the other."""
    for seed, (sparsity, noise, arm) in itertools.product(CHOICE, groups()):
        if len(ARMS[arm]) > 1:
            yield from (Cell(sparsity, noise, arm, index, seed) for index in range(len(ARMS[arm])))


def compared(lines: Sequence[Line]) -> Iterator[Cell]:
    """Yield the runs that are compared, of candidates that were chosen as trained or after a change."""
    of = by_group(lines)
    for seed, group in itertools.product(SEEDS, groups()):
        if seed in SEEDS_BESIDE or group[0] not in BESIDE:
            changes = (AS_TRAINED, *CHANGES) if changed(*group) else (AS_TRAINED,)
            picked = {chosen(of.get(group, []), change) for change in changes}
            yield from (Cell(*group, index, seed) for index in sorted(picked))


def changed(sparsity: float, noise: float, arm: str) -> bool:
    """True where nets are measured after changes too."""
    return sparsity in SPARSITIES and arm in SURVIVING


def by_group(lines: Sequence[Line]) -> dict[tuple[float, float, str], list[Line]]:
    """Return the lines of each sparsity, share of wrong labels and arm."""
    found: dict[tuple[float, float, str], list[Line]] = {}
    for line in lines:
        found.setdefault((line["sparsity"], line["noise"], line["arm"]), []).append(line)
    return found


def chosen(lines: Sequence[Line], change: str = AS_TRAINED) -> int:
    """Return the candidate of the best mean validation accuracy, as trained or after a change, among the lines of a group.

    The earlier of equals, and 0 where there was nothing to choose.
    """
    scores: dict[int, list[float]] = {0: []}
    for line in lines:
        if line["seed"] in CHOICE:
            score = line["validation"] if change == AS_TRAINED else line["after"]["validation"][change]
            scores.setdefault(line["candidate"], []).append(score)
    return judged.chosen({index: scores[index] for index in sorted(scores)}) if scores[0] else 0


def measured() -> list[dict[str, Any]]:
    """Return the lines so far."""
    return lines_of(DATA)


def parts() -> Iterator[Iterable[Cell]]:
    """Yield the runs of the plan: those for choices, then those that these ask for."""
    yield for_choice()
    yield compared(measured())


if __name__ == "__main__":
    run_plan(__doc__, DATA, parts())
