"""The time of `import flatsparse` beside that of `import torch`: processor time of fresh processes, in turns.

    python benchmarks/import_time.py [ROUNDS]

The package is copied and its bytecode compiled first, as an installed wheel has it. The ratio is taken within each turn.
"""

from __future__ import annotations

import compileall
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import flatsparse

PROGRAMS = {
    "import torch": "import torch",
    "import flatsparse": "import flatsparse",
    "import torch, then flatsparse": "import torch, flatsparse",
}


def seconds(program: str, environment: dict[str, str]) -> float:
    """The processor time of a program in a process of its own, user and system."""
    before = os.times()
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    if not spent:
        sys.exit("this system does not count the processor time of other processes")
    return spent


def main() -> None:
    """Measure, and print medians with their range."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(Path(flatsparse.__file__).parent, Path(folder, "flatsparse"))
        compileall.compile_dir(folder, quiet=2)
        environment = {**os.environ, "PYTHONPATH": folder, "OMP_NUM_THREADS": "1"}
        for program in PROGRAMS.values():  # once for the disk
            seconds(program, environment)
        turns = [{name: seconds(program, environment) for name, program in PROGRAMS.items()} for _ in range(rounds)]
    for name in PROGRAMS:
        times = sorted(turn[name] for turn in turns)
        ratios = sorted(turn[name] / turn["import torch"] for turn in turns)
        print(
            f"{name:32} {statistics.median(times):.3f} s ({times[0]:.3f} to {times[-1]:.3f}), "
            f"{statistics.median(ratios):.3f} of torch's ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        )


if __name__ == "__main__":
    main()
