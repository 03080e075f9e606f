"""Measurements as tables: cells, sentences and numbers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from flatsparse.common.seeds import generator
from flatsparse.experiments.bench.cases import Case, loss
from flatsparse.experiments.bench.memory import memory
from flatsparse.experiments.bench.timing import WARM_UP, implied_ratio, interleaved, wall_ratio
from flatsparse.experiments.bench.trainer import Timing, Trainer
from flatsparse.experiments.bench.variants import BASE, BASES, CONTROL, VARIANTS, variants_for
from flatsparse.experiments.stats import Interval
from flatsparse.methods import IN_TABLE_4, METHODS, kind_of, options_of, traits_of

Tell = Callable[[], None]

RUN = 160 * 782  # steps of the paper's runs on CIFAR: 160 epochs of 50,000 images in batches of 64
OFTEN = 4  # steps from one update to the next while they are timed
# From a sparsity on, the most extra buffers at the peak.
BUFFERS = {"s2sam": (0.0, 1.0), "s2sam kernel": (0.0, 1.0), "s2sam compact": (0.9, 0.25)}


@dataclass(frozen=True)
class Table:
    """The results of one case.

    Attributes:
        title: what was measured.
        head, rows: the cells, the first column names the row.
        sentences: statements on the rows.
        ratios: the values to plot, by row and kind.
        record: all of it as plain numbers, raw timings included.
        speeds: curves to plot, by kind of work and form: times the dense form's speed, by what it was measured at.
    """

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    sentences: list[str]
    ratios: dict[str, dict[str, Interval]]
    record: dict[str, Any]
    speeds: Mapping[str, Mapping[str, Mapping[float, Interval]]] = field(default_factory=dict)


def step_table(
    name: str, case: Case, *, rounds: int, sparsity: float, device: str, tell: Tell, base: str = "sgd"
) -> Table:
    """The time of a whole step, every variant against the base, with a second base as control."""
    variants, of_base = variants_for(sparsity, device, base), BASES[base][0]
    trainers = {key: Trainer(case, v, sparsity=sparsity, device=device, base=base) for key, v in variants.items()}
    targets = case.targets if base == "sgd" else {}
    timings = interleaved(trainers, case, rounds, tell=tell)
    walls = {key: wall_ratio(values, timings[BASE]) for key, values in timings.items() if key != BASE}
    implied = {key: ratio for key in walls if (ratio := implied_ratio(timings[key], timings[BASE])) is not None}
    control = walls[CONTROL]
    sentences = [
        f"Noise: a second, identical {of_base} takes {ratio_text(control)} times the first one's wall time"
        f" (implied {ratio_text(implied[CONTROL])}); differences of that size say nothing.",
        *(
            against_target(variants[key].label, ratio, targets.get(key))
            for key, ratio in implied.items()
            if key != CONTROL
        ),
        f"SAM takes {ratio_text(walls['sam'])} times {of_base}'s wall time.",
    ]
    parameters = sum(p.numel() for p in trainers[BASE].model.parameters())
    return Table(
        title=f"{case.title}, {_density(sparsity)}: {parameters / 1e6:.2f}M parameters",
        head=("", "step ms", "optim. ms", "implied ratio", "wall ratio"),
        rows=[
            (
                variants[key].label,
                *_milliseconds(timings[key]),
                ratio_text(implied.get(key)),
                ratio_text(walls.get(key)),
            )
            for key in variants
        ],
        sentences=sentences,
        ratios={
            variants[key].label: {"wall": walls[key], **({"implied": implied[key]} if key in implied else {})}
            for key in walls
        },
        record={
            "case": name,
            "title": case.title,
            "sparsity": sparsity,
            "base": base,
            "parameters": parameters,
            "targets": dict(targets),
            "variants": {
                key: {
                    "label": variants[key].label,
                    "wall_ratio": ratio_json(walls.get(key)),
                    "implied_ratio": ratio_json(implied.get(key)),
                    "step_seconds": [timing.step for timing in timings[key]],
                    "optimizer_seconds": [timing.optimizer for timing in timings[key]],
                }
                for key in variants
            },
        },
    )


def throughput_table(name: str, case: Case, *, rounds: int, sparsity: float, device: str, tell: Tell) -> Table:
    """Samples a second under each method of Table 4: plain, SAM and S²-SAM (Ji et al. 2024, Table 4).

    Updates of the masks are timed too, more often than a run has them, and count by their share of its steps (ours).
    """
    kinds = {BASE: "plain", "sam": "SAM", "s2sam": "S²-SAM"}
    sample = case.batch(generator(0, "saliency"))
    count = len(sample[0])
    rows, sentences, record = [], [], {}
    ratios: dict[str, dict[str, Interval]] = {}
    shares = {method: updates(method, sparsity) / RUN for method in there()}
    for method, share in shares.items():
        kind, options = kind_of(method), dict[str, Any]()
        if traits_of(kind).scoring != "none":
            options = {"batches": [tuple(t.to(device) for t in sample)], "loss_fn": loss}
            options |= {"per_class": None} if "per_class" in options_of(kind) else {}
        options |= {"every": OFTEN} if share else {}
        trainers = {
            key: Trainer(case, VARIANTS[key], sparsity=sparsity, method=method, device=device, **options)
            for key in kinds
        }
        timings = interleaved(trainers, case, timed(rounds, share), tell=tell)
        due = [trainers[BASE].due(WARM_UP + 1 + number) for number in range(timed(rounds, share))]
        ordinary = {key: [t for t, d in zip(timings[key], due, strict=True) if not d] for key in kinds}
        updating = {key: [t.step for t, d in zip(timings[key], due, strict=True) if d] for key in kinds}
        spread = {key: _with_updates(ordinary[key], updating[key], share) for key in kinds}
        speeds = {key: [count / timing.step for timing in spread[key]] for key in kinds}
        # The speed as a ratio to plain: the time of plain as a ratio to ours.
        against = {key: wall_ratio(spread[BASE], spread[key]) for key in kinds if key != BASE}
        for key, label in kinds.items():
            rows.append((f"{method}, {label}", f"{median(speeds[key]):.1f}", ratio_text(against.get(key))))
        ratios |= {f"{method}, {kinds[key]}": {"throughput": ratio} for key, ratio in against.items()}
        sentences.append(
            f"{method}: S²-SAM runs at {ratio_text(against['s2sam'])} of plain training's speed, SAM at"
            f" {ratio_text(against['sam'])}; {_counted(ordinary[BASE], updating[BASE], share)}."
        )
        record[method] = {
            key: {
                "samples_per_second": median(speeds[key]),
                "ratio": ratio_json(against.get(key)),
                "each": speeds[key],
                "update_seconds": updating[key],
            }
            for key in kinds
        }
    return Table(
        title=f"{case.title}, {_density(sparsity)}",
        head=("", "samples/s", "ratio to plain"),
        rows=rows,
        sentences=sentences,
        ratios=ratios,
        record={
            "case": name,
            "title": case.title,
            "sparsity": sparsity,
            "updates_a_step": shares,
            "methods": record,
        },
    )


def there() -> list[str]:
    """The methods of Table 4 that there are."""
    return [method for method in IN_TABLE_4 if method in METHODS]


@functools.cache
def updates(method: str, sparsity: float) -> int:
    """The number of steps of the paper's run on CIFAR that change a method's masks."""
    rules = METHODS[method]().plan(sparsity, RUN).rules
    return sum(any(rule.when(step) for rule in rules) for step in range(2, RUN + 1)) if rules else 0


def timed(rounds: int, share: float) -> int:
    """The number of steps to time so that as many as ``rounds`` have no update."""
    number = rounds
    while share and number - ((WARM_UP + number) // OFTEN - WARM_UP // OFTEN) < rounds:
        number += 1
    return number


def _counted(ordinary: Sequence[Timing], updating: Sequence[float], share: float) -> str:
    """The counting of updates, in words."""
    if not share:
        return "its masks never change"
    longer = median(updating) / median(t.step for t in ordinary)
    return f"a step with an update of the masks takes {longer:.2f} times as long, and counts as one in {1 / share:.0f}"


def _with_updates(ordinary: Sequence[Timing], updating: Sequence[float], share: float) -> list[Timing]:
    """Steps without an update, each longer by its share of one."""
    longer = share * (median(updating) - median(t.step for t in ordinary)) if share else 0.0
    return [Timing(timing.step + longer, None) for timing in ordinary]


def memory_table(name: str, case: Case, *, sparsity: float, device: str, tell: Tell) -> Table:
    """Bytes of live tensors, dense and sparse, and what every variant has over SGD, in buffers of the parameters' size."""
    rows, sentences, record = [], [], []
    for density in dict.fromkeys((0.0, sparsity)):
        variants = {key: v for key, v in variants_for(density, device).items() if key != CONTROL}
        base = None
        for key, variant in variants.items():
            used = memory(case, variant, sparsity=density, device=device)
            tell()
            base = base or used
            kept, peak = (used.kept - base.kept) / used.parameters, (used.peak - base.peak) / used.parameters
            label = f"{variant.label}, {_density(density)}"
            rows.append((label, f"{used.kept / 1e6:.2f}", f"{used.peak / 1e6:.2f}", f"{kept:.2f}", f"{peak:.2f}"))
            record.append({"variant": key, "sparsity": density, **dataclasses.asdict(used)})
            record[-1] |= {"extra_kept": kept, "extra_peak": peak}
            if case.targets and key in BUFFERS and density >= BUFFERS[key][0]:
                most = BUFFERS[key][1]
                verdict = "met" if round(peak, 2) <= most else "missed"
                sentences.append(f"{label}: {peak:.2f} buffers at the peak; target at most {most:g}: {verdict}.")
    return Table(
        title=case.title,
        head=("", "kept MB", "peak MB", "extra kept", "extra at peak"),
        rows=rows,
        sentences=sentences,
        ratios={},
        record={"case": name, "title": case.title, "variants": record},
    )


def against_target(label: str, ratio: Interval, target: float | None) -> str:
    """A variant's implied ratio in a sentence, with what the interval says of a target."""
    text = f"{label}: implied ratio {ratio_text(ratio)}"
    if target is None:
        return f"{text}."
    if ratio.low <= target < ratio.high:
        return f"{text}; target at most {target:g}: open, the interval holds it."
    return f"{text}; target at most {target:g}: {'met' if ratio.high <= target else 'missed'}."


def _density(sparsity: float) -> str:
    return f"{sparsity:.0%} sparse" if sparsity else "dense"


def ratio_text(ratio: Interval | None) -> str:
    """A ratio with its interval, for a cell or a sentence."""
    return "" if ratio is None else f"{ratio:.3f}"


def _milliseconds(timings: list[Timing]) -> tuple[str, str]:
    inside = [t.optimizer for t in timings if t.optimizer is not None]
    return f"{1000 * median(t.step for t in timings):.2f}", f"{1000 * median(inside):.3f}" if inside else ""


def ratio_json(ratio: Interval | None) -> Mapping[str, float] | None:
    """A ratio with its interval, for a record."""
    return None if ratio is None else {"value": ratio.mean, "low": ratio.low, "high": ratio.high}
