"""Directions that cost no gradient, and how close they come to SAM's: gains on real sparse training, a bowl, and accuracy.

    python benchmarks/free_directions.py            # continues where it stopped; writes the page at the end

RigL at 95 % on 300 scans of digits, 40 epochs of 64 scans a step: the setting of `make demo`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import judged
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

import flatsparse as fs
from flatsparse.common.files import write_atomic
from flatsparse.common.json_files import read_json_lines, with_checksum
from flatsparse.common.seeds import generator
from flatsparse.experiments.run.build import build
from flatsparse.experiments.run.config import RunConfig
from flatsparse.experiments.run.epoch import take_step
from flatsparse.experiments.run.evaluation import evaluate
from flatsparse.experiments.run.resolve import resolve
from flatsparse.experiments.stats import mean_interval, paired_difference
from flatsparse.measure.directions import directional_increases
from flatsparse.sam.directions import less_average, mask_gradient

ROOT = Path(__file__).parent.parent
DATA, PAGE = ROOT / "results" / "free_directions.jsonl", ROOT / "docs" / "free-directions.md"
SETTING = RunConfig.of(train_size=300, batch_size=64, epochs=40, method="rigl", sparsity=0.95)
RHOS = (0.05, 0.2, 0.5)
GAIN_SEEDS, LOOK_EVERY = range(4), 3  # steps; an epoch has 5, so measurements fall on all of its batches
TRAIN_RHOS, SEEDS, NOISE = (0.2, 0.5, 1.0), (0, 1, 2, 3, 4, 5, 100, 101), 0.2

Tensors = dict[nn.Parameter, Tensor]
Direction = Callable[[Any, Tensors], Tensors]


class Average:
    """A running average of the gradients, ``d ← β d + (1 − β) g``; with a factor of −1, down it."""

    def __init__(self, decay: float, factor: float = 1.0) -> None:
        self.decay, self.factor, self.kept = decay, factor, {}  # type: ignore[var-annotated]

    def __call__(self, optimizer: Any, gradients: Tensors) -> Tensors:
        self.kept = {
            p: self.kept[p].lerp(g, 1 - self.decay) if p in self.kept else g.clone() for p, g in gradients.items()
        }
        return {p: self.factor * d for p, d in self.kept.items()}


class Extrapolated:
    """The gradient that a straight line through the last two leads to, ``2 g_t − g_{t−1}``."""

    def __init__(self) -> None:
        self.last: Tensors = {}

    def __call__(self, optimizer: Any, gradients: Tensors) -> Tensors:
        told = {p: 2 * g - self.last.get(p, g) for p, g in gradients.items()}
        self.last = {p: g.clone() for p, g in gradients.items()}
        return told


class Noise:
    """Gaussian noise wherever the gradient is not zero, so on active weights."""

    def __init__(self) -> None:
        self.source = generator("noise")

    def __call__(self, optimizer: Any, gradients: Tensors) -> Tensors:
        return {p: torch.randn(g.shape, generator=self.source).to(g) * (g != 0) for p, g in gradients.items()}


def each(form: Callable[[Tensor, Tensor], Tensor]) -> Direction:
    """The previous gradient, changed weight by weight or layer by layer: a function of weight and gradient."""
    return lambda optimizer, gradients: {p: form(p.detach(), g) for p, g in gradients.items()}


# By name: how to make one, with the buffers the size of the weights that it needs, and what it is.
DIRECTIONS: dict[str, tuple[Callable[[], Direction], int, str]] = {
    "previous": (lambda: each(lambda w, g: g), 1, "the previous gradient: S²-SAM"),
    "average 0.5": (lambda: Average(0.5), 2, "a running average, β = 0.5"),
    "average 0.9": (lambda: Average(0.9), 2, "a running average, β = 0.9; up the momentum, but for decay"),
    "average 0.97": (lambda: Average(0.97), 2, "a running average, β = 0.97"),
    "down 0.9": (lambda: Average(0.9, -1.0), 2, "down that of β = 0.9, where MSAM perturbs (Becker et al. 2024)"),
    "extrapolated": (Extrapolated, 2, "2 g_t − g_{t−1}"),
    "sign": (lambda: each(lambda w, g: g.sign()), 1, "the signs of the previous gradient"),
    "equal layers": (
        lambda: each(lambda w, g: g / (g.norm() + 1e-12)),
        1,
        "the previous gradient, every tensor at the same length",
    ),
    "weighted layers": (
        lambda: each(lambda w, g: g * w.norm() / (g.norm() + 1e-12)),
        1,
        "the previous gradient, every tensor at its weights' length",
    ),
    "by weight": (lambda: each(lambda w, g: g * w.square()), 1, "the previous gradient times w², as ASAM scales"),
    "random": (Noise, 1, "noise: the control"),
}
FRESH = "the gradient of another batch, at SAM's price"
# Published rivals by name: the gradients that they cost a step, and what they go along.
STALE_SHARE = 0.25
RIVALS: dict[str, tuple[float, str]] = {
    "sam": (2.0, "the coming batch's own gradient: SAM"),
    "previous": (1.0, "the previous gradient: S²-SAM"),
    "less average": (1.0, "it less a running average, F-SAM's part (Li et al. 2024)"),
    "mask": (1.0, "masks' own gradient, as far as it goes along weights, after C-SAM (He & Chen 2026)"),
    "stale": (
        1.0 + STALE_SHARE,
        "the gradient, one step old, of a quarter of the last batch: AsyncSAM (Jo et al. 2025)",
    ),
}


def trained(run: RunConfig, direction: Direction | None = None) -> Iterator[tuple[Any, tuple[Tensor, Tensor]]]:
    """Train a run, stopping before each step with its parts and the coming batch; a direction of one's own may be put in."""
    parts = build(resolve(run))
    if direction is not None:
        parts.optimizer.direction = direction  # type: ignore[attr-defined]  # S2SAM takes any function
    for epoch in range(run.schedule.epochs):
        parts.net.train()
        train, size = parts.task.splits.train, run.optim.batch_size
        for one in train.batches(size, augment=parts.task.augmented, seed=run.seed, epoch=epoch):
            batch = one.content
            yield parts, batch
            parts.optimizer.zero_grad()
            take_step(parts, [one])
            parts.schedule.step()
    yield parts, batch


def gain_record(key: dict[str, Any]) -> dict[str, Any]:
    """Mean gains of every direction along one run, by ρ and by third of the run, each on the batch that comes next."""
    run = dataclasses.replace(
        SETTING, sharpness=key["sharpness"], rho=0.5, label_noise=key["label_noise"], seed=key["seed"]
    )
    kept, steps = {name: make() for name, (make, _, _) in DIRECTIONS.items()}, run.schedule.epochs * 5
    found: dict[str, dict[str, list[list[float]]]] = {}
    directions, copy = {}, None
    for step, (parts, batch) in enumerate(trained(run)):
        gradients = {p: p.grad for p in parts.model.parameters() if p.grad is not None}
        if gradients:
            directions = {name: list(kept[name](None, gradients).values()) for name in kept}
        if gradients and step % LOOK_EVERY == 0 and step < steps:
            copy = copy or parts.task.fresh()
            copy.load_state_dict(parts.model.state_dict())
            copy.train()
            value = functools.partial(_loss, copy, batch)
            along = {
                "sam": _slopes(copy, batch, parts),
                "fresh": _slopes(copy, _another(parts, step), parts),
                **directions,
            }
            for rho in RHOS:
                for name, gain in directional_increases(copy, along, value, rho).items():
                    thirds = found.setdefault(str(rho), {}).setdefault(name, [[], [], []])
                    thirds[3 * step // steps].append(gain)
    means = {
        rho: {name: [statistics.fmean(third) for third in thirds] for name, thirds in of.items()}
        for rho, of in found.items()
    }
    return {**key, "gain": means}


def rival_record(key: dict[str, Any]) -> dict[str, Any]:
    """Mean gains along what published rivals go along, by ρ, on the batch that comes next; at the steps of ``gain_record``."""
    run = dataclasses.replace(
        SETTING, sharpness=key["sharpness"], rho=0.5, label_noise=key["label_noise"], seed=key["seed"]
    )
    keeper, steps = SimpleNamespace(state=defaultdict(dict), param_groups=[]), run.schedule.epochs * 5
    found: dict[str, dict[str, list[float]]] = {str(rho): {name: [] for name in RIVALS} for rho in RHOS}
    copy: nn.Module | None = None
    stale: list[Tensor] = []
    for step, (parts, batch) in enumerate(trained(run)):
        copy = copy or parts.task.fresh()
        copy.load_state_dict(parts.model.state_dict())
        copy.train()
        gradients = {p: p.grad for p in parts.model.parameters() if p.grad is not None}
        if gradients:
            free = {"less average": less_average(keeper, gradients), "mask": mask_gradient(keeper, gradients)}
        if gradients and step % LOOK_EVERY == 0 and step < steps:
            along = {
                "sam": _slopes(copy, batch, parts),
                "previous": list(gradients.values()),
                **{name: [some.get(p, torch.zeros_like(p)) for p in gradients] for name, some in free.items()},
                "stale": _active(copy, stale, parts),
            }
            value = functools.partial(_loss, copy, batch)
            for rho in RHOS:
                for name, gain in directional_increases(copy, along, value, rho).items():
                    found[str(rho)][name].append(gain)
        quarter = round(STALE_SHARE * len(batch[1]))
        stale = _slopes(copy, (batch[0][:quarter], batch[1][:quarter]), parts)
    return {**key, "gain": {rho: {name: statistics.fmean(g) for name, g in of.items()} for rho, of in found.items()}}


def _another(parts: Any, step: int) -> tuple[Tensor, Tensor]:
    """A batch of scans that are not in the coming one."""
    run, train = parts.run, parts.task.splits.train
    epoch, place = divmod(step, parts.steps_per_epoch)
    order = torch.randperm(len(train), generator=generator(run.seed, "epoch", epoch))  # as the loop draws it
    first = place * run.optim.batch_size
    others = torch.cat([order[:first], order[first + run.optim.batch_size :]])
    chosen = others[torch.randperm(len(others), generator=generator(run.seed, "fresh", step))[: run.optim.batch_size]]
    return next(dataclasses.replace(train, samples=train.samples.take(chosen)).batches(run.optim.batch_size)).content


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> float:
    return float(F.cross_entropy(model(batch[0]), batch[1]))


def _slopes(model: nn.Module, batch: tuple[Tensor, Tensor], parts: Any) -> list[Tensor]:
    """The gradient on live weights."""
    named = dict(model.named_parameters())
    slopes = torch.autograd.grad(F.cross_entropy(model(batch[0]), batch[1]), list(named.values()))
    return _active(model, slopes, parts)


def _active(model: nn.Module, tensors: Sequence[Tensor], parts: Any) -> list[Tensor]:
    """Tensors for a model's parameters, zero outside the masks as they are now."""
    masks, names = parts.training.masks, dict(model.named_parameters())
    return [torch.where(masks[n], t, 0) if n in masks else t for n, t in zip(names, tensors, strict=True)]


def accuracy_record(key: dict[str, Any]) -> dict[str, Any]:
    """Accuracy on validation and test scans of a run that is perturbed along a direction."""
    run = dataclasses.replace(SETTING, sharpness="s2sam", rho=key["rho"], label_noise=NOISE, seed=key["seed"])
    *_, (parts, _) = trained(run, DIRECTIONS[key["direction"]][0]())
    held, test = (
        evaluation.value
        for split in (parts.task.splits.validation, parts.task.splits.test)
        if (evaluation := evaluate(parts, split)) is not None
    )
    return {**key, "validation": held, "test": test}


def bowl_record(key: dict[str, Any]) -> dict[str, Any]:
    """The distance from the minimum of ‖w‖² in R¹⁰ at which a direction comes to rest, over ρ.

    It is the mean over the last hundred of a thousand steps.
    """
    w = nn.Parameter(torch.randn(10, generator=generator("bowl"), dtype=torch.float64))
    optimizer = fs.S2SAM(SGD([w], lr=0.1), rho=0.05, direction=DIRECTIONS[key["direction"]][0]())
    tail = []
    for step in range(1000):
        with optimizer.perturbed():
            w.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        tail += [float(w.detach().norm()) / 0.05] * (step >= 900)
    return {**key, "rest": statistics.fmean(tail)}


def plan() -> Iterator[tuple[Callable[[dict[str, Any]], dict[str, Any]], dict[str, Any]]]:
    """The measurements, in their order."""
    for name in DIRECTIONS:
        yield bowl_record, {"kind": "bowl", "direction": name}
    for seed in GAIN_SEEDS:
        for noise in (0.0, NOISE):
            for sharpness in ("none", "s2sam"):
                yield gain_record, {"kind": "gain", "sharpness": sharpness, "label_noise": noise, "seed": seed}
                yield rival_record, {"kind": "rivals", "sharpness": sharpness, "label_noise": noise, "seed": seed}
    for seed in SEEDS:
        for name in DIRECTIONS:
            for rho in TRAIN_RHOS:
                yield accuracy_record, {"kind": "accuracy", "direction": name, "rho": rho, "seed": seed}


def accuracies(records: list[dict[str, Any]], name: str, rho: float, of: str = "test") -> list[float]:
    """Of a direction's runs, in the order of the seeds."""
    runs = {r["seed"]: r[of] for r in records if r["kind"] == "accuracy" and (r["direction"], r["rho"]) == (name, rho)}
    return [runs[seed] for seed in SEEDS]


def best_rho(records: list[dict[str, Any]], name: str) -> float:
    """The ρ with the highest mean validation accuracy, the smallest of equals."""
    return min(TRAIN_RHOS, key=lambda rho: (-statistics.fmean(accuracies(records, name, rho, "validation")), rho))


def main() -> None:
    DATA.parent.mkdir(exist_ok=True)
    records = read_json_lines(DATA) if DATA.is_file() else []
    for measure, key in plan():
        if any(all(record.get(name) == value for name, value in key.items()) for record in records):
            continue
        records.append(measure(key))
        write_atomic(DATA, "".join(json.dumps(with_checksum(record)) + "\n" for record in records).encode())
    PAGE.write_text(rendered(records))


def share(
    records: list[dict[str, Any]], sharpness: str, rho: float, name: str, third: int | None = None
) -> list[float]:
    """A direction's mean gain over SAM's, run by run."""

    def mean(gain: dict[str, list[float]], of: str) -> float:
        return statistics.fmean(gain[of]) if third is None else gain[of][third]

    runs = [r["gain"][str(rho)] for r in records if r["kind"] == "gain" and r["sharpness"] == sharpness]
    return [mean(gain, name) / mean(gain, "sam") for gain in runs]


def rival_share(records: list[dict[str, Any]], sharpness: str, rho: float, name: str) -> list[float]:
    """A rival's mean gain over SAM's, run by run."""
    runs = [r["gain"][str(rho)] for r in records if r["kind"] == "rivals" and r["sharpness"] == sharpness]
    return [gain[name] / gain["sam"] for gain in runs]


def rival_rows(records: list[dict[str, Any]]) -> list[list[str]]:
    """Of each rival its price, its gains as shares of SAM's, and at the largest ρ its share of SAM's gain for each gradient."""
    rows = []
    for name, (gradients, about) in RIVALS.items():
        shares = [rival_share(records, sharpness, rho, name) for sharpness in ("none", "s2sam") for rho in RHOS]
        each = [[share * RIVALS["sam"][0] / gradients for share in shares[place]] for place in (len(RHOS) - 1, -1)]
        told = [interval(v) if name != "sam" else "1" for v in (*shares[: len(RHOS)], each[0], shares[-1], each[1])]
        rows.append([name, f"{gradients:g}", *told, about])
    return rows


def rival_verdict(records: list[dict[str, Any]]) -> str:
    """How the gains of rivals differ from the previous gradient's at the largest ρ, paired by run, as shares of SAM's."""
    told = []
    for name in [name for name in RIVALS if name not in ("sam", "previous")]:
        plain, ours = (
            paired_difference(*(rival_share(records, sharpness, RHOS[-1], one) for one in (name, "previous")))
            for sharpness in ("none", "s2sam")
        )
        told.append(f"{name} {plain:+.2f}, and {ours:+.2f} on S²-SAM's run")
    return (
        f"At ρ = {RHOS[-1]:g}, how far the share is above the previous gradient's, paired by run, with the 95 % interval:"
        f" {'; '.join(told)}."
    )


def interval(values: list[float]) -> str:
    return mean_interval(values).with_half(".2f")


def rendered(records: list[dict[str, Any]]) -> str:
    """The page, with every number from the records."""
    gained = {
        "plain": [
            [name, *(interval(share(records, "none", rho, name)) for rho in RHOS), about]
            for name, about in [("fresh", FRESH), *((n, d[2]) for n, d in DIRECTIONS.items())]
        ],
        "s2sam": [
            [
                name,
                *(interval(share(records, "s2sam", rho, name)) for rho in RHOS),
                *(f"{statistics.fmean(share(records, 's2sam', 0.5, name, third)):.2f}" for third in range(3)),
            ]
            for name in ["fresh", *DIRECTIONS]
        ],
    }
    rest = {r["direction"]: r["rest"] for r in records if r["kind"] == "bowl"}
    outcome, over = [], {}
    chosen = {name: accuracies(records, name, best_rho(records, name)) for name in DIRECTIONS}
    for name, (_, buffers, _) in DIRECTIONS.items():
        told = paired_difference(chosen[name], chosen["previous"])
        if name != "previous":
            over[name] = judged.paired(chosen[name], chosen["previous"])
        outcome.append(
            [
                name,
                *(f"{statistics.fmean(accuracies(records, name, rho)):.2f}" for rho in TRAIN_RHOS),
                f"{best_rho(records, name):g}",
                f"{told:+.1f}" if name in over else "",
                f"{rest[name]:.3f}",
                str(buffers),
            ]
        )
    rhos = [f"ρ = {rho:g}" for rho in RHOS]
    tables = {  # and words
        "GAINS_PLAIN": table(["direction", *rhos, "what it is"], gained["plain"]),
        "GAINS_S2SAM": table(["direction", *rhos, "first third", "second", "last"], gained["s2sam"]),
        "RIVALS": table(
            [
                "direction",
                "gradients",
                *rhos,
                "per gradient",
                f"S²-SAM's run: ρ = {RHOS[-1]:g}",
                "per gradient there",
                "what it goes along",
            ],
            rival_rows(records),
        ),
        "RIVALS_VERDICT": rival_verdict(records),
        "OUTCOME": table(
            ["direction", *(f"ρ = {rho:g}" for rho in TRAIN_RHOS), "chosen", "over previous", "bowl: ‖w‖/ρ", "buffers"],
            outcome,
        ),
        "RUNS": str(sum(r["kind"] == "gain" for r in records) // 2),
        "SEEDS": str(len(SEEDS)),
        "NOISE": f"{NOISE:.0%}".replace("%", " %"),
    }
    claims = judged.claims(over)
    better, worse = ([name for name, claim in claims.items() if getattr(claim, side)] for side in ("above", "below"))
    tables["VERDICT"] = (
        f"Surely better than the previous gradient, Holm's p over the {len(claims)} differences below 0.05:"
        f" {judged.listed(better)}. Surely worse: {judged.listed(worse)}. There was no plan, and ρ was chosen on the seeds that"
        " are compared, by their validation accuracy."
    )
    page = TEXT
    for name, text in tables.items():
        page = page.replace(f"«{name}»", text)
    return page


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


TEXT = """# Which direction is free, and near to SAM's?

S²-SAM perturbs along the previous gradient because it costs nothing. Other things cost nothing too: momentum, averages of several
lengths, the gradient's signs, its layers scaled. `python benchmarks/free_directions.py` measures them all and generates this page
from `results/free_directions.jsonl`; a test regenerates it and compares. Measured with torch 2.13.0 on a CPU, one thread.

## What a direction gains

L(w + ρ d/‖d‖) − L(w), on the batch that comes next, as training sees it, with the direction known before; as a share of the gain
along that batch's own gradient, which is SAM's and costs a gradient more. RigL at 95 % on 300 images of digits, 40 epochs of 64
images a step, SGD with momentum; every third step, «RUNS» runs (two settings of the labels, clean and «NOISE» wrong, four seeds
each), mean with the 95 % interval over runs. *fresh* is the gradient, at the same weights, of a batch drawn from the images
that are not in the coming one: the best possible for a gradient that does not know its batch, at SAM's price.

Trained plainly:

«GAINS_PLAIN»

Trained with S²-SAM, ρ = 0.5; the last three columns are thirds of the run, at ρ = 0.5:

«GAINS_S2SAM»

- **The previous gradient gains about as much as a fresh one.** SAM's gains more because it is that of the coming batch itself,
  not because it is newer. Nothing free can know that batch, so there is little to gain from another free direction of first
  order.
- It gains far more than noise of the same length. The larger ρ, the larger its share.
- **Late in a run most shares fall**, and that of a fresh gradient most: on so few images the gradient of one batch then says
  little about the next.
- **Long averages overtake it late and lose early.** An average of β = 0.5 is its equal over the whole run, for a buffer more.
- Signs and scaled layers gain less at every ρ, and down the momentum, where MSAM perturbs, there is little or nothing to gain:
  that method must work by something else than a near worst case.

### Published rivals, gain per gradient

The same, at the same steps of the same runs, for what published methods of about the price go along. *Gradients* are those that
a step takes; *per gradient* is the gain at ρ = 0.5 over them, as a share of SAM's gain over its two. Late SAM and LE-SAM have no
direction of their own: they change when, and how far, weights are perturbed, and gain what the direction they go with
does (the thirds above).

«RIVALS»

«RIVALS_VERDICT»

- **Counted by gradients none gains more than the previous gradient**, and none as much as SAM, which takes two for the largest.
- What is the last batch's own in its gradient gains about what the whole gradient does, on S²-SAM's run a little less.
- A stale gradient of a quarter of the batch gains about as much as the whole previous one where training is plain, and less for
  each gradient. On S²-SAM's run the previous gradient, which was taken at w + e there, gains clearly more.
- Masks' gradient gains little. Its share is larger than that of *by weight*, the same on biases and norms too.

Within an epoch the coming batch shares no image with the last one. The first batch of an epoch, one of five, may share some with
the last of the epoch before, which flatters what is free a little.

## Results in accuracy

Test accuracy with «NOISE» of the training labels wrong, «SEEDS» seeds, means in percent at each ρ tried. Each direction's ρ
is then chosen by the mean accuracy on the validation images, and its test accuracy at that ρ compared with the previous
gradient's at its own, in points: paired by seed, with 95 % intervals that do not include the choice of ρ. The bowl is ‖w‖²
in R¹⁰ at η = 0.1 without momentum: where the weights settle, in units of ρ (see [theory](theory.md)); there SAM's is 0.111.
Buffers are those the size of the weights, the perturbed weights included.

«OUTCOME»

«VERDICT»

- **So none is offered beside those that `direction=` has**; it takes any function, which is how these were trained.
- **What a direction gains does not decide what it is worth.** Signs and scaled layers gain far less than the previous gradient
  at the same ρ and end up level with it, each at its best ρ; an average of β = 0.5 gains as much and may end up below it.
- Noise is the worst but for the longest average, though it was best at the largest ρ tried and may gain beyond it, as may
  others that were.
- **The previous gradient is the least tolerant of a ρ that is too large**, with the shorter averages: twice the best one ruins
  it. Scaled layers, signs and extrapolation lose little there. Where ρ cannot be tuned, *weighted layers* is worth a try:

  <!-- run
  import torch
  import flatsparse as fs

  model = fs.models.digitnet()
  base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
  -->

  ```python
  def weighted_layers(optimizer, gradients):
      return {p: g * p.norm() / (g.norm() + 1e-12) for p, g in gradients.items()}


  optimizer = fs.S2SAM(base, rho=0.5, direction=weighted_layers)
  ```

- The bowl ranks directions otherwise. Averages, which turn slowly, settle far out; down the momentum, which gains
  little, settles nearest to the minimum. On a loss with one minimum and no noise a near worst case is of no use.

A first round chose each ρ on two seeds. It gave the previous gradient a worse one, and three others a lead of 1.5 points that
looked certain; once every ρ had eight seeds it was gone.

What was not studied: large nets and large sets, where batches say more about each other, and schedules of ρ, which change
how far the weights are perturbed, not in which direction (`--rho-schedule` has them).
"""


if __name__ == "__main__":
    main()
