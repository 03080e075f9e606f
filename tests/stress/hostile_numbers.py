"""Trainings on hostile gradients, drawn at random: sharpness, base, method, network, hazards, ρ, learning rate, 10¹² steps.

``python tests/stress/hostile_numbers.py 1000`` runs 1,000 cases of ``tests/hostile.py`` and ends at the first that breaks a law,
with the line that repeats it, or with its counts.
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

import flatsparse as fs
from tests.hostile import BASES, HALF, HAZARDS, KINDS, RHO, STEPS, Case
from tests.hostile_run import run


def drawn(seed: int) -> Case:
    """A case at random, of any kind, base, method, network and hazards, that can be made."""
    source = random.Random(seed)
    while True:
        at = source.sample(range(1, STEPS + 1), source.choice((1, 1, 1, 2, 3)))
        case = Case(
            kind=source.choice(list(KINDS)),
            base=source.choice(list(BASES)),
            method=source.choice(list(fs.METHODS)),
            hazards=tuple(sorted((step, source.choice(list(HAZARDS))) for step in at)),
            rho=source.choice((0.0, RHO, RHO, 10.0, 1e6)),
            lr=source.choice((None, None, None, 0.0, 1e-6, 1.0)),
            net=source.choice(("tiny", "tiny", "odd", "odd", *HALF)),
            start=source.choice((0, 0, 0, source.randrange(1, 10**12 - STEPS))),
            seed=seed,
        )
        if case.is_made:
            return case


def main(count: int, first: int) -> int:
    """Run cases with consecutive seeds. Returns the exit status."""
    torch.set_num_threads(1)
    began, seen = time.perf_counter(), collections.Counter()
    for seed in range(first, first + count):
        case = drawn(seed)
        try:
            warned = run(case)
        except Exception as problem:  # whatever it is, it is the fault that is looked for
            print(f"{case}: {type(problem).__name__}: {problem}")
            print(f"repeat it: python tests/stress/hostile_numbers.py 1 --seed {seed}")
            return 1
        seen.update(_features(case, warned))
    counts = ", ".join(f"{number} {what}" for what, number in sorted(seen.items()))
    print(f"{count} cases held ({counts}); {time.perf_counter() - began:.0f} seconds")
    return 0


def _features(case: Case, warned: list[str]) -> list[str]:
    hazards = {name for _, name in case.hazards}
    found = {
        "with a gradient that is not finite": hazards & {"a NaN", "an infinity", "NaN everywhere"},
        "warned of one": [text for text in warned if "not finite" in text],
        "far into 10¹² steps": case.start,
        "with learning rate 0": case.lr == 0,
        "with ρ of 10⁶": case.rho == 1e6,
        "in half precision": case.net in HALF,
        "on layers of one weight and of none": case.net == "odd",
    }
    return [what for what, holds in found.items() if holds]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    given = parser.parse_args()
    sys.exit(main(given.count, given.seed))
