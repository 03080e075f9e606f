"""The cost of masks: keeping them true, as a share of a training step, and changing them every hundred steps.

    python benchmarks/mask_upkeep.py --rounds 20 --case resnet32

A case of ``flatsparse bench step`` (ResNet-32, 64 images a batch, by default), 90 % sparse, SGD. Upkeep is the optimizer's
time with masks less that without, over a dense step; a change is the optimizer's time on a step of RigL that rewires less
that on the step after it, over a hundred steps. Both are timed inside real steps, interleaved; the targets are 2 % and 1 %.
"""

from __future__ import annotations

import torch
import tyro

from flatsparse.common.errors import check_count, unknown
from flatsparse.experiments.bench.cases import CASES
from flatsparse.experiments.bench.timing import WARM_UP, interleaved
from flatsparse.experiments.bench.trainer import Timing, Trainer
from flatsparse.experiments.bench.variants import BASE, VARIANTS
from flatsparse.experiments.run.environment import processor
from flatsparse.experiments.stats import FEWEST, Interval, median

PERIOD = 100  # steps between changes, RigL's own


def upkeep(masked: list[Timing], dense: list[Timing]) -> Interval:
    """The share of a dense step that keeping masks true takes."""
    return median([(m.optimizer - d.optimizer) / d.step for m, d in zip(masked, dense, strict=True)])


def change(moving: list[Timing], due: list[bool], dense: list[Timing]) -> Interval:
    """The share of a hundred dense steps that one change of the masks takes."""
    pairs = [(now, after) for now, after in zip(range(len(due)), range(1, len(due)), strict=False) if due[now]]
    return median([(moving[i].optimizer - moving[j].optimizer) / (PERIOD * dense[i].step) for i, j in pairs])


def main(rounds: int = 20, sparsity: float = 0.9, case: str = "resnet32") -> None:
    """Measure and print both shares.

    Args:
        rounds: steps of each kind that are timed; every other one changes the masks.
        sparsity: fraction of prunable weights that are zero.
        case: resnet32, resnet50 (8 images of 64×64, where updates weigh most) or transformer.
    """
    check_count("--rounds", rounds, minimum=2 * FEWEST)
    if case not in CASES:
        raise unknown("case", case, CASES)
    chosen, base = CASES[case], VARIANTS[BASE]
    trainers = {
        "dense": Trainer(chosen, base),
        "static": Trainer(chosen, base, sparsity=sparsity),
        "rigl": Trainer(chosen, base, sparsity=sparsity, method="rigl", every=2),
    }
    timings = interleaved(trainers, chosen, rounds)
    first = WARM_UP + 1
    due = [trainers["rigl"].due(step) for step in range(first, first + rounds)]
    for label, share in (
        ("keeping masks true", upkeep(timings["static"], timings["dense"])),
        (f"changing them every {PERIOD} steps", change(timings["rigl"], due, timings["dense"])),
    ):
        print(f"{label}: {share.mean:.3%} of a step, 95 % interval {share.low:.3%} to {share.high:.3%}")
    print(f"{chosen.title}, torch {torch.__version__}, {torch.get_num_threads()} threads, {processor('cpu')}")


if __name__ == "__main__":
    tyro.cli(main)
