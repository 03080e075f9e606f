"""Small nets for devices: dense, 2:4, unstructured and with fewer channels, in int8, for an Ethos-U; lines in results/edge.jsonl.

FLATSPARSE_DATA=DIR python benchmarks/edge.py --work runs                        # the plan in edge.md; continues where it stopped
FLATSPARSE_DATA=DIR python benchmarks/edge.py --work runs --only 'kws_cnn 2:4*'  # some rows of it
"""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from planned import run_missing

from flatsparse.experiments.run.config import RunConfig
from flatsparse.experiments.run.loop import train

HERE = Path(__file__).parent
DATA = HERE.parent / "results" / "edge.jsonl"
SHARED = {"data": "cifar10", "train_size": 20_000, "validation_size": 2_000, "batch_size": 64, "weight_decay": 5e-4}
EPOCHS, MORE = 10, 5  # of the dense net, and of each row after it
CALIBRATION, TARGET = 256, "ethos-u85-256"
Settings = dict[str, Any]
GMP: Settings = {"method": "gmp", "distribution": "uniform"}
FORMS: dict[str, Settings] = {
    "dense": {"method": "dense", "sparsity": 0.0},
    "2:4": {**GMP, "sparsity": 0.5, "pattern": (2, 4)},
    "80 %": {**GMP, "sparsity": 0.8},
    "90 %": {**GMP, "sparsity": 0.9},
    "95 %": {**GMP, "sparsity": 0.95},
    "half of the channels": {"method": "chex", "sparsity": 0.5},
}
ARMS: dict[str, Settings] = {"plain": {}, "S²-SAM": {"sharpness": "s2sam", "rho": 0.05}}


@dataclass(frozen=True)
class Net:
    """A network of edge_nets.py, how it is trained, and which of its layers stay dense.

    Attributes:
        lr: of the dense net; rows that go on from it begin at half of it.
        seeds: the number of them.
    """

    lr: float
    settings: Settings
    dense: tuple[str, ...] = ()
    seeds: int = 3


NETS = {
    "mlp": Net(0.01, {"augmentation": False}),
    "kws_cnn": Net(0.05, {"channels_last": True}, dense=("stem.0",)),
    "mobilenet": Net(0.05, {"channels_last": True}, dense=("stem.0", "*.depthwise.0"), seeds=1),
}


@dataclass(frozen=True)
class Row:
    """One net, trained and compiled."""

    net: str
    form: str
    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.net} {self.form} {self.arm} {self.seed}"

    @property
    def shared(self) -> Settings:
        net = NETS[self.net]
        return {**SHARED, **net.settings, "model": f"{HERE / 'edge_nets.py'}:{self.net}", "seed": self.seed}

    def run(self, work: Path) -> dict[str, Any]:
        """Train what is not in the folder yet, compile, and return what is kept."""
        net, start = NETS[self.net], work / f"{self.net}-{self.seed}"
        train(RunConfig.of(**self.shared, **FORMS["dense"], lr=net.lr, epochs=EPOCHS), start, resume=True)
        own = {**FORMS[self.form], **ARMS[self.arm]}
        if self.form != "dense" and net.dense:
            own["exclude"] = net.dense
        place = work / str(self).replace(" ", "-").replace(":", "of")
        config = RunConfig.of(**self.shared, **own, lr=net.lr / 2, epochs=MORE, init=start)
        result = train(config, place, resume=True)
        return {**asdict(self), "float": result.test_accuracy}


def rows() -> Iterator[Row]:
    """Yield the plan, one seed of all rows of a net before the next."""
    for seed in range(max(net.seeds for net in NETS.values())):
        for name, net in NETS.items():
            if seed < net.seeds:
                yield from (Row(name, form, arm, seed) for form in FORMS for arm in ARMS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs, which are trained once")
    parser.add_argument("--only", default="*", help="a shell pattern of rows")
    parser.add_argument("--jobs", type=int, default=2)
    chosen = parser.parse_args()
    run_missing(DATA, [row for row in rows() if fnmatch.fnmatch(str(row), chosen.only)], asdict, chosen.jobs)


if __name__ == "__main__":
    main()
