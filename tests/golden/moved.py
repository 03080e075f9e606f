"""Says which loss curves a change moved, even by one bit: the code of a commit and that of this folder, on the same machine.

``python tests/golden/moved.py [COMMIT]`` (by default HEAD) ends with status 0 if no curve moved, or if a commit since then has
``bits`` in its message; else with status 1 and what to do. Bits differ between processors, so none are kept in files.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
WHAT_TO_DO = (
    "if that is meant, say in the commit's message that bits moved and why ('bits' is looked for), and write the curves that the"
    " tests compare anew: python -m tests.test_golden_curves"
)


def bits() -> dict[str, list[str]]:
    """Every curve of the tests, and the same in float32, each loss as exactly as it is."""
    sys.path.insert(0, str(ROOT))
    import torch

    from tests.test_golden_curves import CURVES, curve

    torch.set_num_threads(1)
    kinds = {"": torch.float64, " in float32": torch.float32}
    return {f"{name}{kind}": [x.hex() for x in curve(name, dtype)] for kind, dtype in kinds.items() for name in CURVES}


def bits_of(source: Path) -> dict[str, list[str]]:
    """The curves by the code in a folder, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--print"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def moved(ours: dict[str, list[str]], theirs: dict[str, list[str]]) -> list[str]:
    """A line for each curve that differs, with the first step that does and by how much."""
    lines = []
    for name in ours:
        if ours[name] != theirs[name]:
            step, old, new = next(
                (i, a, b) for i, (a, b) in enumerate(zip(theirs[name], ours[name], strict=True), 1) if a != b
            )
            old, new = float.fromhex(old), float.fromhex(new)
            lines.append(f"{name}: step {step}, {old!r} became {new!r}")
    return lines


def git(*arguments: str) -> bytes:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], stdout=subprocess.PIPE, check=True).stdout


def main(commit: str) -> int:
    """Compare with a commit. Returns the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(git("archive", commit, "src"))) as packed:
            packed.extractall(folder)
        lines = moved(bits_of(ROOT / "src"), bits_of(Path(folder, "src")))
    if not lines:
        print(f"no curve has moved since {commit}")
        return 0
    print(f"bits have moved since {commit}:", *lines, sep="\n  ")
    said = re.search(r"\bbits?\b", git("log", "--format=%B", f"{commit}..HEAD").decode(), re.IGNORECASE)
    print("a commit since then says so" if said else WHAT_TO_DO)
    return 0 if said else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit", nargs="?", default="HEAD")
    parser.add_argument("--print", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.print:
        json.dump(bits(), sys.stdout)
        sys.exit()
    sys.exit(main(given.commit))
