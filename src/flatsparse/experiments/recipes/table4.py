"""Table 4 of Ji et al. (2024): throughput."""

from __future__ import annotations

import dataclasses

from flatsparse.experiments.bench.suite import Bench
from flatsparse.experiments.bench.suite import measure as measure_bench
from flatsparse.experiments.bench.variants import BASE
from flatsparse.experiments.metric import Metric
from flatsparse.experiments.recipes.recipe import Measured, Reading, Recipe, Scale, Work
from flatsparse.experiments.recipes.setting import LABELS

BENCHES: dict[Scale, Bench] = {
    "smoke": Bench("throughput", quick=True),
    "laptop": Bench("throughput", case=("resnet32",), rounds=20),
    "paper": Bench("throughput", case=("resnet32", "resnet50"), rounds=50),
}


def measured(runs: object, work: Work) -> Measured:
    """Run ``flatsparse bench throughput`` and take its samples a second, round by round."""
    bench = dataclasses.replace(BENCHES[work.scale], device=work.device).resolved()
    tables = measure_bench(bench, work.console)
    readings = [
        Reading(LABELS[method], table.record["case"], "none" if key == BASE else key, tuple(speeds["each"]))
        for table in tables
        for method, kinds in table.record["methods"].items()
        for key, speeds in kinds.items()
    ]
    return Measured(readings=readings, said=[sentence for table in tables for sentence in table.sentences])


RECIPE = Recipe(
    "table4",
    "Throughput of GraSP, RigL and MEST(EM) at 90 %: plain, SAM and S²-SAM",
    "Ji et al. 2024, Table 4",
    notes=(
        "The printed images a second are unknown to us; the text says that S²-SAM loses fewer than 20 a second on ResNet-50 and"
        " that SAM is at less than half. Speeds are of the machine they are measured on: compare the ratios below the table.",
        "Timed one at a time, whatever --jobs.",
        "smoke: a tiny net and few rounds. laptop: ResNet-32. paper: ResNet-50 as well, on 64x64 images.",
    ),
    metric=Metric("samples a second"),
    measure=measured,
)
