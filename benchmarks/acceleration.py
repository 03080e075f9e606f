"""How much faster accelerated layers are: dense, masked and accelerated networks side by side, in training and in inference.

python benchmarks/acceleration.py            # measures; writes results/bench/acceleration.json and a table in docs/
python benchmarks/acceleration.py --page     # only the table
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from reproduced import with_table
from torch import Tensor, nn

import flatsparse as fs
from flatsparse.common.files import write_atomic
from flatsparse.experiments.run.environment import environment

ROOT = Path(__file__).parent.parent
DATA, PAGE = ROOT / "results" / "bench" / "acceleration.json", ROOT / "docs" / "accelerate.md"
SPARSITIES = (0.8, 0.9, 0.95)
FORMS = ("dense", "dense again", "masked", "accelerated")
WARM_UP = 3


class FeedForward(nn.Module):
    """The feed-forward half of a Transformer's block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


def mlp(*widths: int) -> nn.Module:
    layers = [(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*[module for pair in layers for module in pair][:-1])


@dataclass(frozen=True)
class Case:
    """A network, the shape of its input, and its layouts when it is dense."""

    title: str
    model: Callable[[], nn.Module]
    inputs: tuple[int, ...]
    layouts: tuple[torch.memory_format, ...] = (torch.contiguous_format,)
    rounds: int = 20


IMAGE_LAYOUTS = (torch.contiguous_format, torch.channels_last)
CASES = (
    Case("linear 1024 × 1024, batch 128", lambda: nn.Linear(1024, 1024), (128, 1024), rounds=60),
    Case("linear 1024 × 1024, batch 512", lambda: nn.Linear(1024, 1024), (512, 1024), rounds=30),
    Case("MLP 784-512-512-10, batch 128", lambda: mlp(784, 512, 512, 10), (128, 784), rounds=60),
    Case("MLP 784-3×1024-10, batch 128", lambda: mlp(784, 1024, 1024, 1024, 10), (128, 784), rounds=40),
    Case(
        "two feed-forward blocks of 512, 512 tokens",
        lambda: nn.Sequential(FeedForward(512), FeedForward(512)),
        (512, 512),
    ),
    Case("ResNet-20, 64 images", fs.models.resnet20, (64, 3, 32, 32), IMAGE_LAYOUTS, rounds=15),
)


class Trained:
    """A network that is stepped or run, and timed in the time of one thread."""

    def __init__(
        self, model: nn.Module, inputs: Tensor, sparsity: float | None = None, *, accelerated: bool = False
    ) -> None:
        self.model, self.inputs = model, inputs
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
        if sparsity is not None:
            options: dict[str, Any] = {"sparsity": sparsity, "steps": 10**9, "distribution": "uniform"}
            self.training = fs.sparsify(model, self.optimizer, "static", **options)
            if accelerated:
                self.accelerated = fs.accelerate(model, self.training)

    def step(self) -> float:
        self.model.train()
        began = time.thread_time()
        self.optimizer.zero_grad()
        self.model(self.inputs).square().mean().backward()
        self.optimizer.step()
        return time.thread_time() - began

    @torch.no_grad()
    def infer(self) -> float:
        self.model.eval()
        began = time.thread_time()
        self.model(self.inputs)
        return time.thread_time() - began


def measured(case: Case, sparsity: float) -> dict[str, Any]:
    """Return the times of all forms, in seconds, over rounds that take each once, in an order drawn anew."""
    torch.manual_seed(0)
    model, inputs = case.model(), torch.randn(case.inputs)
    layout = _faster(model, inputs, case.layouts)
    dense, laid = copy.deepcopy(model).to(memory_format=layout), inputs.contiguous(memory_format=layout)  # type: ignore[call-overload]
    forms = {
        "dense": Trained(dense, laid),
        "dense again": Trained(copy.deepcopy(dense), laid),
        "masked": Trained(copy.deepcopy(dense), laid, sparsity),
        "accelerated": Trained(model, inputs, sparsity, accelerated=True),
    }
    order, times = (
        random.Random(0),
        {kind: {name: list[float]() for name in FORMS} for kind in ("training", "inference")},
    )
    for number in range(-WARM_UP, case.rounds):
        for kind in times:
            for name in order.sample(FORMS, len(FORMS)):
                seconds = forms[name].step() if kind == "training" else forms[name].infer()
                if number >= 0:
                    times[kind][name].append(seconds)
    return {
        "case": case.title,
        "sparsity": sparsity,
        "layout": str(layout),
        "layers": forms["accelerated"].accelerated.layers,
        "times": times,
    }


def _faster(model: nn.Module, inputs: Tensor, layouts: Sequence[torch.memory_format]) -> torch.memory_format:
    """Return the layout in which a dense network trains faster."""

    def seconds(layout: torch.memory_format) -> float:
        run = Trained(copy.deepcopy(model).to(memory_format=layout), inputs.contiguous(memory_format=layout))  # type: ignore[call-overload]
        return statistics.median([run.step() for _ in range(4)][1:])

    return layouts[0] if len(layouts) == 1 else min(layouts, key=seconds)


def speed(record: dict[str, Any], kind: str, form: str) -> str:
    """Return how many times as fast as dense a form is: the median of ratios over rounds, and their quartiles."""
    times = record["times"][kind]
    ratios = [dense / other for dense, other in zip(times["dense"], times[form], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.2f} [{low:.2f}–{high:.2f}]"


def table(records: Sequence[dict[str, Any]]) -> str:
    """Return the table of the page."""
    lines = [
        "| times as fast as dense | zeros | training | inference | masked, training | dense again, training |",
        "| --- " * 6 + "|",
    ]
    for record in records:
        cells = [
            speed(record, "training", "accelerated"),
            speed(record, "inference", "accelerated"),
            speed(record, "training", "masked"),
            speed(record, "training", "dense again"),
        ]
        lines.append(f"| {record['case']} | {record['sparsity']:.0%} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="write the table again, and measure nothing")
    if not parser.parse_args().page:
        torch.set_num_threads(1)
        about = environment()
        records = []
        for case in CASES:
            for sparsity in SPARSITIES:
                records.append(measured(case, sparsity))
                print(table(records).splitlines()[-1], flush=True)
        instructions = os.environ.get("FLATSPARSE_INSTRUCTIONS", "the processor's best")
        found = {
            "on": {**about["versions"], **about["machine"], "load": os.getloadavg()[0]},
            "instructions": instructions,
            "records": records,
        }
        write_atomic(DATA, (json.dumps(found) + "\n").encode())
    records = json.loads(DATA.read_text())["records"]
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), table(records)), encoding="utf-8")


if __name__ == "__main__":
    main()
