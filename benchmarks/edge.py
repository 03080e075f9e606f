"""Small nets for devices: dense, 2:4, unstructured and with fewer channels, in int8, for an Ethos-U; lines in results/edge.jsonl.

FLATSPARSE_DATA=DIR python benchmarks/edge.py --work runs                        # the plan in edge.md; continues where it stopped
FLATSPARSE_DATA=DIR python benchmarks/edge.py --work runs --only 'kws_cnn 2:4*'  # some rows of it
"""

from __future__ import annotations

import argparse
import fnmatch
import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from planned import Planned, lines_of, missing, run_missing

from flatsparse.experiments.export_checks import difference_of, score
from flatsparse.experiments.export_edge import calibration, without_channels
from flatsparse.experiments.run.config import RunConfig
from flatsparse.experiments.run.load import load_run
from flatsparse.experiments.run.loop import train
from flatsparse.export import compile_ethos_u

HERE = Path(__file__).parent
DATA = HERE.parent / "results" / "edge.jsonl"
SHARED = {"data": "cifar10", "train_size": 20_000, "validation_size": 2_000, "batch_size": 64, "weight_decay": 5e-4}
EPOCHS = 10  # of the dense net
CHECKED, TARGET = 16, "ethos-u85-256"  # images on which the compiled program is compared with the int8 one
Settings = dict[str, Any]
GMP: Settings = {"method": "gmp", "distribution": "uniform"}
FORMS: dict[str, Settings] = {
    "dense": {"method": "dense", "sparsity": 0.0},
    "2:4": {**GMP, "sparsity": 0.5, "pattern": (2, 4)},
    "80 %": {**GMP, "sparsity": 0.8},
    "90 %": {**GMP, "sparsity": 0.9},
    "95 %": {**GMP, "sparsity": 0.95},
    "half of the channels": {"method": "chex", "channels": 0.5},
}
ARMS: dict[str, Settings] = {"plain": {}, "S²-SAM": {"sharpness": "s2sam", "rho": 0.05}}


@dataclass(frozen=True)
class Net:
    """A network of edge_nets.py, how it is trained, and which of its layers stay dense.

    Attributes:
        lr: of the dense net; rows that go on from it begin at half of it.
        more: the epochs of these rows.
        images: of the test set, on which the int8 net is measured.
        seeds: the number of them.
    """

    lr: float
    settings: Settings
    dense: tuple[str, ...] = ()
    more: int = 10
    images: int = 10_000
    seeds: int = 3


NETS = {
    "mlp": Net(0.01, {"augmentation": False}),
    "kws_cnn": Net(0.05, {"channels_last": True}, dense=("stem.0",)),
    "mobilenet": Net(0.05, {"channels_last": True}, dense=("stem.0", "*.depthwise.0"), more=5, images=2_000, seeds=1),
}


@dataclass(frozen=True)
class Row(Planned):
    """One net, trained and compiled.

    Attributes:
        work: the folder of all runs.
    """

    net: str
    form: str
    arm: str
    seed: int
    work: Path

    def __str__(self) -> str:
        return f"{self.net} {self.form} {self.arm} {self.seed}"

    @property
    def identity(self) -> dict[str, Any]:
        """What the line is known by."""
        return {name: value for name, value in asdict(self).items() if name != "work"}

    @property
    def shared(self) -> Settings:
        """What the dense net and the row are trained by."""
        model = f"{HERE / 'edge_nets.py'}:{self.net}"
        return {**SHARED, **NETS[self.net].settings, "model": model, "seed": self.seed}

    @property
    def start(self) -> Path:
        """The folder of the dense net that the row goes on from."""
        return self.work / f"{self.net}-{self.seed}"

    def train_start(self) -> None:
        """Train the dense net, if it is not there."""
        run = RunConfig.of(**self.shared, **FORMS["dense"], lr=NETS[self.net].lr, epochs=EPOCHS)
        train(run, self.start, resume=True)

    def run(self) -> dict[str, Any]:
        """Train and compile, and return what is kept."""
        net, own = NETS[self.net], {**FORMS[self.form], **ARMS[self.arm]}
        if own["method"] == "gmp" and net.dense:
            own["exclude"] = net.dense
        place = self.work / str(self).replace(" ", "-").replace(":", "of").replace("%", "percent")
        config = RunConfig.of(**self.shared, **own, lr=net.lr / 2, epochs=net.more, init=self.start)
        result = train(config, place, resume=True)
        run = load_run(place)
        samples, test = calibration(run, "ethos-u"), run.task.splits.test.first(net.images)
        compiled = compile_ethos_u(*without_channels(run), samples, target=TARGET, memory="flash")
        seen = samples[:CHECKED]
        return {
            **self.identity,
            "float": score(run.model, run, test)["accuracy"],
            "int8": score(compiled.int8, run, test)["accuracy"],
            "sparsity": result.sparsity.prunable,
            "program_bytes": len(compiled.pte),
            "estimates": {"flash": asdict(compiled.estimate), "sram": asdict(compiled.estimate_in("sram"))},
            "on_cpu": compiled.on_cpu,
            "reference": difference_of(compiled.reference(seen), compiled.int8(seen)),
        }


def rows(work: Path) -> Iterator[Row]:
    """Yield the plan: of each net, a seed after the other."""
    for name, net in NETS.items():
        for seed, form, arm in itertools.product(range(net.seeds), FORMS, ARMS):
            yield Row(name, form, arm, seed, work)


def measured() -> list[dict[str, Any]]:
    """Return the lines so far."""
    return lines_of(DATA)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, required=True, help="the folder of the runs, each of which is trained once"
    )
    parser.add_argument("--only", default="*", help="a shell pattern of rows")
    parser.add_argument("--jobs", type=int, default=2)
    chosen = parser.parse_args()
    asked = [row for row in rows(chosen.work) if fnmatch.fnmatch(str(row), chosen.only)]
    for row in {(row.net, row.seed): row for row in missing(measured(), asked)}.values():
        row.train_start()  # before several processes need it
    run_missing(DATA, asked, chosen.jobs)


if __name__ == "__main__":
    main()
