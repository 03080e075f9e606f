"""Runs of a registered plan, several at a time: what is missing is measured, and each adds its line to a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flatsparse.common.json_files import read_json_lines, with_checksum
from flatsparse.experiments.grid.workers import local_executor
from flatsparse.experiments.progress import Progress
from flatsparse.experiments.terminal import Console


def lines_of(data: Path) -> list[dict[str, Any]]:
    """Return the lines so far."""
    return read_json_lines(data) if data.exists() else []


def run_missing(data: Path, cells: Sequence[Any], identity: Callable[[Any], dict[str, Any]], jobs: int) -> None:
    """Run the cells that a file has no line of.

    Args:
        identity: gives the entries of a cell's line by which it is known.
    """
    wanted = [(cell, identity(cell)) for cell in cells]
    names = wanted[0][1].keys()

    def key(line: dict[str, Any]) -> str:
        return json.dumps({name: line[name] for name in names}, sort_keys=True)

    done = {key(line) for line in lines_of(data)}
    todo = [cell for cell, known in wanted if key(known) not in done]
    progress = Progress(Console(), data.stem, len(cells), done=len(cells) - len(todo))
    with progress, local_executor(jobs) as executor, data.open("a", encoding="utf-8") as lines:
        for _, line in executor.map(todo):
            lines.write(json.dumps(with_checksum(line), ensure_ascii=False) + "\n")
            lines.flush()
            progress.advance()
