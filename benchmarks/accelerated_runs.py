"""Whole runs with and without --accelerate: RigL and S²-SAM at 95 % on ResNet-20 and CIFAR-10, beside the dense run.

python benchmarks/accelerated_runs.py --data-dir DIR --out STORE   # runs, two at a time, and adds lines to results/
python benchmarks/accelerated_runs.py                              # writes the table anew

Each run has one thread. Those of a seed follow each other, so that they meet the same machine; a run that is there is not
repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from reproduced import with_table

from flatsparse.common.files import write_atomic
from flatsparse.common.json_files import read_json, read_json_lines, with_checksum
from flatsparse.experiments.stats import mean_interval, median, paired_difference

ROOT = Path(__file__).parent.parent
DATA, PAGE = ROOT / "results" / "accelerated_runs.jsonl", ROOT / "docs" / "accelerate.md"
SEEDS, AT_ONCE = range(6), 2
SHARED = {"data": "cifar10", "model": "resnet20", "train-size": 5000, "epochs": 8, "batch-size": 64, "lr": 0.1}
SPARSE = {"method": "rigl", "sparsity": 0.95, "sharpness": "s2sam", "rho": 0.05}


def _options(settings: dict[str, Any]) -> list[str]:
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


FORMS = {
    "dense": [*_options({"method": "dense"}), "--channels-last"],
    "masked": [*_options(SPARSE), "--channels-last"],
    "accelerated": [*_options(SPARSE), "--accelerate"],
}


def run(form: str, seed: int, data_dir: Path, store: Path) -> dict[str, Any]:
    """Train, unless that is done, and return what is kept of the run."""
    out = store / f"{form}-{seed}"
    options = [
        *_options(SHARED),
        *FORMS[form],
        "--seed",
        str(seed),
        "--data-dir",
        str(data_dir),
        "--out",
        str(out),
        "--resume",
    ]
    if not (out / "result.json").exists():
        subprocess.run(
            [sys.executable, "-m", "flatsparse", "train", *options],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )
    result, about = read_json(out / "result.json"), read_json(out / "config.json")
    return {
        "form": form,
        "seed": seed,
        "options": [*_options(SHARED), *FORMS[form]],
        "test_accuracy": result["test_accuracy"],
        "test_loss": result["test_loss"],
        "sparsity": result["sparsity"],
        "seconds": result["seconds"],
        "machine": about["machine"],
        "versions": about["versions"],
    }


def measured(data_dir: Path, store: Path) -> list[dict[str, Any]]:
    """Return a line for each run; seeds run beside each other, and the forms of a seed after each other."""

    def of_seed(seed: int) -> list[dict[str, Any]]:
        return [run(form, seed, data_dir, store) for form in FORMS]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [line for lines in pool.map(of_seed, SEEDS) for line in lines]


def table(records: list[dict[str, Any]]) -> str:
    """Return the table of the page: of each form accuracy and time, and how they compare with the masked run's, seed by seed."""
    by_form = {form: sorted((r for r in records if r["form"] == form), key=lambda r: r["seed"]) for form in FORMS}

    def seconds(form: str) -> list[float]:
        return [record["seconds"]["train"] for record in by_form[form]]

    def accuracies(form: str) -> list[float]:
        return [record["test_accuracy"] for record in by_form[form]]

    lines = [
        "| ResNet-20, CIFAR-10 | test accuracy | less or more than masked | time of training, of dense |",
        "| --- " * 4 + "|",
    ]
    for form in FORMS:
        accuracy, against = mean_interval(accuracies(form)), paired_difference(accuracies(form), accuracies("masked"))
        share = median([own / dense for own, dense in zip(seconds(form), seconds("dense"), strict=True)])
        differs = "" if form == "masked" else f"{against.mean:+.2f} [{against.low:+.2f}, {against.high:+.2f}]"
        of_dense = "1" if form == "dense" else f"{share.mean:.2f} [{share.low:.2f}, {share.high:.2f}]"
        lines.append(
            f"| {form} | {accuracy.mean:.2f} [{accuracy.low:.2f}, {accuracy.high:.2f}] | {differs} | {of_dense} |"
        )
    return "\n".join(lines)


def page() -> str:
    """Return the page with its table made of the lines."""
    return with_table(PAGE.read_text(encoding="utf-8"), table(read_json_lines(DATA)), "in whole runs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="where CIFAR-10 lies")
    parser.add_argument("--out", type=Path, help="folder for the runs")
    options = parser.parse_args()
    if options.out is not None:
        lines = measured(options.data_dir, options.out)
        write_atomic(DATA, "".join(json.dumps(with_checksum(line)) + "\n" for line in lines).encode())
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
