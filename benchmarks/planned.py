"""Runs of a registered plan, several at a time: what is missing is measured, and each adds its line to a file; and its page."""

from __future__ import annotations

import argparse
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from flatsparse.common.files import write_atomic
from flatsparse.common.json_files import read_json_lines, with_checksum
from flatsparse.experiments.grid.workers import local_executor
from flatsparse.experiments.progress import Progress
from flatsparse.experiments.terminal import Console


class Planned(ABC):
    """One run of a plan; a frozen dataclass, that worker processes are given."""

    @property
    def identity(self) -> dict[str, Any]:
        """What the run's line is known by."""
        return asdict(self)  # type: ignore[call-overload]  # those below are dataclasses

    @abstractmethod
    def run(self) -> dict[str, Any]:
        """Train and measure; return the run's line."""

    def lost(self, reason: str) -> NoReturn:
        """Stop: the process died."""
        raise SystemExit(f"{self} was lost: {reason}")


SomeRun = TypeVar("SomeRun", bound=Planned)


def lines_of(data: Path) -> list[dict[str, Any]]:
    """Return the lines so far."""
    return read_json_lines(data) if data.exists() else []


def missing(lines: Sequence[Mapping[str, Any]], cells: Iterable[SomeRun]) -> list[SomeRun]:
    """Return the runs of a plan that have no line.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Cell(Planned):
    ...     seed: int
    ...     def run(self):
    ...         return {**self.identity, "test": 1.0}
    >>> missing([Cell(0).run()], [Cell(0), Cell(1)])
    [Cell(seed=1)]
    """
    return [cell for cell, line in matched(lines, cells) if line is None]


def matched(
    lines: Sequence[Mapping[str, Any]], cells: Iterable[SomeRun]
) -> list[tuple[SomeRun, Mapping[str, Any] | None]]:
    """Return the runs of a plan, each with its line if it has one."""
    wanted = [(cell, cell.identity) for cell in cells]
    names = list(wanted[0][1]) if wanted else []
    known = {_key(line, names): line for line in lines}
    return [(cell, known.get(_key(identity, names))) for cell, identity in wanted]


def _key(line: Mapping[str, Any], names: Sequence[str]) -> str:
    return json.dumps({name: line.get(name) for name in names}, sort_keys=True)


def run_missing(data: Path, cells: Sequence[Planned], jobs: int) -> None:
    """Run what a file has no line of, several at a time."""
    todo = missing(lines_of(data), cells)
    progress = Progress(Console(), data.stem, len(cells), done=len(cells) - len(todo))
    with progress, local_executor(jobs) as executor, data.open("a", encoding="utf-8") as lines:
        for _, line in executor.map(todo):
            lines.write(json.dumps(with_checksum(line), ensure_ascii=False) + "\n")
            lines.flush()
            progress.advance()


def run_plan(about: str, data: Path, parts: Iterable[Iterable[Planned]]) -> None:
    """Run the parts of a plan, each after the one before it; a command line.

    Args:
        about: the script's docstring.
        parts: taken one by one, so that a part may depend on the lines of those before.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    jobs = parser.parse_args().jobs
    for cells in parts:
        run_missing(data, list(cells), jobs)


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
