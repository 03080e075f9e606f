"""Runs a stress script, and keeps its last line in results/stress.jsonl, of which docs/reliability.md is made.

``python tests/stress/keep.py damage.py 1000``; ``python tests/stress/keep.py`` alone writes the page again.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from flatsparse.common.files import write_atomic
from flatsparse.common.json_files import read_json_lines, with_checksum

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DATA, PAGE, TEMPLATE = ROOT / "results" / "stress.jsonl", ROOT / "docs" / "reliability.md", HERE / "reliability.md"
# Scripts in the order of the page, and what each tries.
SCRIPTS = {
    "kill_anywhere.py": "SIGKILL at random moments, over all commands",
    "damage.py": "files cut short, with bytes flipped, or another run's",
    "hostile_numbers.py": "losses and gradients that are not finite, zero or huge; extreme ρ, learning rates and step counts",
    "ranks.py": "a process of several killed, stopped or slow",
    "inputs.py": "command lines, records, code of a user's own, names, links",
    "same_bits.py": "the same run twice: by other numbers of workers and jobs, resumed, in another process",
}


def kept(script: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run a script and return its line. Raises SystemExit where it fails."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, HERE / script, *arguments], stdout=subprocess.PIPE, encoding="utf-8", check=False
    )
    print(done.stdout, end="")
    if done.returncode:
        raise SystemExit(done.returncode)
    return {
        "script": script,
        "arguments": list(arguments),
        "said": done.stdout.strip().splitlines()[-1],
        "minutes": round((time.monotonic() - began) / 60, 1),
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "commit": _commit(),
    }


def _commit() -> str:
    said = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    return said.stdout.strip()


def rendered(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return the page."""
    rows = [
        f"| {what} | `python tests/stress/{' '.join((script, *line['arguments']))}` | {line['said']} | {line['minutes']:.0f} |"
        for script, what in SCRIPTS.items()
        for line in lines
        if line["script"] == script
    ]
    return TEMPLATE.read_text(encoding="utf-8").replace("ROWS", "\n".join(rows))


def main() -> None:
    if sys.argv[1:]:
        line = kept(sys.argv[1], sys.argv[2:])
        with DATA.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(with_checksum(line), ensure_ascii=False) + "\n")
    write_atomic(PAGE, rendered(read_json_lines(DATA)).encode())


if __name__ == "__main__":
    main()
