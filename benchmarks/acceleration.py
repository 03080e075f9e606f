"""The tables of docs/accelerate.md, from what ``flatsparse bench sparse`` measured.

flatsparse bench sparse --out FOLDER
python benchmarks/acceleration.py FOLDER    # keeps its record in results/bench/, and writes the tables
python benchmarks/acceleration.py           # writes the tables anew
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reproduced import with_table

from flatsparse.common.files import write_atomic
from flatsparse.common.json_files import read_json, with_checksum
from flatsparse.experiments.bench.sparse_tables import interval

ROOT = Path(__file__).parent.parent
BENCH, PAGE = ROOT / "results" / "bench", ROOT / "docs" / "accelerate.md"
DATA = {1: BENCH / "acceleration.json", 2: BENCH / "acceleration_2_threads.json", None: BENCH / "two_of_four_h200.json"}
CASES = (
    "linear-1024x1024-b128",
    "linear-1024x1024-b512",
    "mlp-512",
    "mlp-1024",
    "feedforward-512",
    "resnet20",
    "resnet32",
)
SPARSITIES = (0.8, 0.9, 0.95)
COLUMNS = (
    ("training", "accelerated"),
    ("inference", "accelerated"),
    ("training", "accelerated, 16×1 blocks"),
    ("inference", "accelerated, 16×1 blocks"),
    ("training", "masked"),
    ("training", "small"),
    ("training", "sparselab"),
    ("training", "sparseprop"),
    ("training", "dense again"),
)


def table(record: Mapping[str, Any]) -> str:
    """Return the table of the page: times as fast as dense, of the forms that were measured."""
    points = {
        (case["case"], kind, point["sparsity"]): point["forms"]
        for case in record["cases"]
        for kind, every in case["points"].items()
        for point in every
    }
    columns = [(kind, form) for kind, form in COLUMNS if any(form in forms for forms in points.values())]
    titles = {case["case"]: case["title"] for case in record["cases"]}
    lines = [
        "| times as fast as dense | zeros | " + " | ".join(f"{form}, {kind}" for kind, form in columns) + " |",
        "| --- " * (2 + len(columns)) + "|",
    ]
    for name in CASES:
        for sparsity in SPARSITIES:
            if name in titles and any((name, kind, sparsity) in points for kind, _ in columns):
                forms = [points.get((name, kind, sparsity), {}).get(form) for kind, form in columns]
                cells = ["" if form is None else f"{interval(form):.2f}" for form in forms]
                lines.append(f"| {titles[name]} | {sparsity:.0%} | {' | '.join(cells)} |")
    return "\n".join(lines)


def gpu_table(record: Mapping[str, Any]) -> str:
    """Return the table of 2:4 weights on a GPU, in bfloat16: times as fast as dense."""
    lines = [
        "| times as fast as dense, bfloat16 | samples | 2:4, inference | 2:4 in the forward, training | dense again, inference |",
        "| --- " * 5 + "|",
    ]
    for case in record["cases"]:
        if case["title"].endswith("bfloat16"):
            for inference, training in zip(case["points"]["inference"], case["points"]["training"], strict=True):
                forms = [
                    inference["forms"]["2:4, cuSPARSELt"],
                    training["forms"]["2:4, cuSPARSELt (forward)"],
                    inference["forms"]["dense again"],
                ]
                cells = " | ".join(f"{interval(form):.2f}" for form in forms)
                lines.append(f"| {case['title'].removesuffix(', bfloat16')} | {inference['batch']:,} | {cells} |")
    return "\n".join(lines)


TABLES = {"": (1, table), "on two threads": (2, table), "on a GPU": (None, gpu_table)}


def page() -> str:
    """Return the page with its tables made of what was measured."""
    text = PAGE.read_text(encoding="utf-8")
    for name, (threads, make) in TABLES.items():
        if DATA[threads].exists():
            text = with_table(text, make(read_json(DATA[threads])), name)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="the --out of flatsparse bench sparse")
    folder = parser.parse_args().folder
    if folder is not None:
        record = with_checksum(read_json(folder / "bench.json"))
        threads = record["cases"][0]["threads"]  # None on a GPU
        # All times, and no line for each.
        write_atomic(DATA[threads], (json.dumps(record, separators=(",", ":")) + "\n").encode())
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
