"""Runs of a registered plan, several at a time: what is missing is measured, and each adds its line to a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flatsparse.common.json_files import read_json_lines, with_checksum
from flatsparse.experiments.grid.workers import local_executor
from flatsparse.experiments.progress import Progress
from flatsparse.experiments.terminal import Console

Identity = Callable[[Any], dict[str, Any]]


def lines_of(data: Path) -> list[dict[str, Any]]:
    """Return the lines so far."""
    return read_json_lines(data) if data.exists() else []


def missing(lines: Sequence[Mapping[str, Any]], cells: Iterable[Any], identity: Identity) -> list[Any]:
    """Return the cells of a plan that have no line.

    >>> missing([{"seed": 0, "test": 1.0}], [0, 1], lambda seed: {"seed": seed})
    [1]
    """
    wanted = [(cell, identity(cell)) for cell in cells]
    names = list(wanted[0][1]) if wanted else []
    done = {_key(line, names) for line in lines}
    return [cell for cell, known in wanted if _key(known, names) not in done]


def _key(line: Mapping[str, Any], names: Sequence[str]) -> str:
    return json.dumps({name: line[name] for name in names}, sort_keys=True)


def run_missing(data: Path, cells: Sequence[Any], identity: Identity, jobs: int) -> None:
    """Run the cells that a file has no line of.

    Args:
        identity: gives the entries of a cell's line by which it is known.
    """
    todo = missing(lines_of(data), cells, identity)
    progress = Progress(Console(), data.stem, len(cells), done=len(cells) - len(todo))
    with progress, local_executor(jobs) as executor, data.open("a", encoding="utf-8") as lines:
        for _, line in executor.map(todo):
            lines.write(json.dumps(with_checksum(line), ensure_ascii=False) + "\n")
            lines.flush()
            progress.advance()
