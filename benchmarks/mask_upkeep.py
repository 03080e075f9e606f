"""The cost of masks: keeping them true, as a share of a training step, and changing them every hundred steps.

    python benchmarks/mask_upkeep.py --rounds 20

ResNet-32, 64 images a batch, 90 % sparse, SGD. Upkeep is the optimizer's time with masks less that without, over a dense
step; a change is the optimizer's time on a step of RigL that rewires less that on the step after it, over a hundred steps.
Both are timed inside real steps, interleaved; the targets are 2 % and 1 %.
"""

from __future__ import annotations

import torch
import tyro

from flatsparse.common.errors import check_count
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


def main(rounds: int = 20, sparsity: float = 0.9) -> None:
    """Measure and print both shares.

    Args:
        rounds: steps of each kind that are timed; every other one changes the masks.
        sparsity: fraction of prunable weights that are zero.
    """
    check_count("--rounds", rounds, minimum=2 * FEWEST)
    case, base = CASES["resnet32"], VARIANTS[BASE]
    trainers = {
        "dense": Trainer(case, base),
        "static": Trainer(case, base, sparsity=sparsity),
        "rigl": Trainer(case, base, sparsity=sparsity, method="rigl", every=2),
    }
    timings = interleaved(trainers, case, rounds)
    first = WARM_UP + 1
    due = [trainers["rigl"].due(step) for step in range(first, first + rounds)]
    for label, share in (
        ("keeping masks true", upkeep(timings["static"], timings["dense"])),
        (f"changing them every {PERIOD} steps", change(timings["rigl"], due, timings["dense"])),
    ):
        print(f"{label}: {share.mean:.3%} of a step, 95 % interval {share.low:.3%} to {share.high:.3%}")
    print(f"{case.title}, torch {torch.__version__}, {torch.get_num_threads()} threads, {processor('cpu')}")


if __name__ == "__main__":
    tyro.cli(main)
