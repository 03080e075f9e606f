"""Runs of a registered plan, several at a time: what is missing is measured, and each adds its line to a file; and its page."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flatsparse.common.files import write_atomic
from flatsparse.common.json_files import read_json_lines, with_checksum
from flatsparse.experiments.grid.workers import local_executor
from flatsparse.experiments.progress import Progress
from flatsparse.experiments.terminal import Console

Identity = Callable[[Any], dict[str, Any]]  # gives the entries of a cell's line by which it is known


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
    """Run the cells that a file has no line of."""
    todo = missing(lines_of(data), cells, identity)
    progress = Progress(Console(), data.stem, len(cells), done=len(cells) - len(todo))
    with progress, local_executor(jobs) as executor, data.open("a", encoding="utf-8") as lines:
        for _, line in executor.map(todo):
            lines.write(json.dumps(with_checksum(line), ensure_ascii=False) + "\n")
            lines.flush()
            progress.advance()


def write_page(page: Path, lines: Sequence[Any], far: str, rendered: Callable[[Any], str]) -> None:
    """Write a page of a plan's lines; a command line, whose ``--partial`` prints it from what is complete.

    Args:
        far: how many of the runs are there, while some are missing.
        rendered: gives the page.
    """
    parser = argparse.ArgumentParser(description=f"Write {page.name}.")
    parser.add_argument("--partial", action="store_true", help="print the page of what is complete; write nothing")
    partial = parser.parse_args().partial
    if far and not partial:
        raise SystemExit(f"{far}: {page.name} is not written; --partial prints what is complete")
    if partial:
        print(rendered(lines))
    else:
        write_atomic(page, rendered(lines).encode())
