"""A user's training script, run for some optimizer steps under the watch."""

from __future__ import annotations

import functools
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatsparse.common.errors import InputError, check_count, described, shown
from flatsparse.common.plugins import importable
from flatsparse.diagnosis.finding import Finding, from_message, users_line
from flatsparse.diagnosis.loop.patches import replaced
from flatsparse.diagnosis.loop.watch import Watch
from flatsparse.diagnosis.subject import Subject
from flatsparse.sam.base import SharpnessAware
from flatsparse.sparse.training import SparseTraining

PATIENCE = 4  # steps of whatever optimizers, for each step of those that are looked at, before a script is stopped


class Enough(BaseException):
    """Raised in a script's step to stop it; no Exception, so that scripts do not catch it."""


@dataclass(frozen=True)
class Examination:
    """What became of a script.

    Attributes:
        findings: each kind of mistake once.
        steps: that were looked at.
        problem: why it did not run to the end, in a line; empty if it did, or was stopped.
    """

    findings: tuple[Finding, ...]
    steps: int
    problem: str = ""


def examine_script(file: Path, steps: int, arguments: Sequence[str] = ()) -> Examination:
    """Run a script as Python would, watch what ``sparsify``, S2SAM and SAM it makes, and stop it after some steps of these.

    Ours: the loop is watched from outside, so that it need not be changed. What it computes up to there is what it computes
    by itself, and what it writes it writes.

    Args:
        file: of Python code.
        steps: the number of optimizer steps.
        arguments: the script's own.

    Raises: InputError for a file that is not there, and a script that neither trains sparsely nor with SAM or S²-SAM.
    """
    check_count("steps", steps)
    if not file.is_file():
        raise InputError(f"no file '{file}': give the Python script of a training run")
    watch = Watch()

    def stop_when_seen() -> None:
        if watch.steps >= steps or watch.all_steps >= PATIENCE * steps:
            if watch.watched:
                watch.examine()
            raise Enough

    watch.after_step = stop_when_seen
    with ExitStack() as stack:
        stack.enter_context(_as_program(file, arguments))
        stack.enter_context(_subjects_of(watch))
        stack.enter_context(watch.running())
        problem = _run(file, watch)
        if not problem and not watch.findings and watch.steps < steps:
            watch.tell("ended")
    if not watch.watched and not problem and not watch.findings:
        raise InputError(
            f"'{file}' calls neither sparsify nor S2SAM or SAM, so there is nothing to look at: give the script that trains"
        )
    return Examination(tuple(watch.findings), watch.steps or watch.all_steps, problem)


def _run(file: Path, watch: Watch) -> str:
    """Run a script. Returns why it ended, if it failed; what this package refuses is a finding."""
    try:
        runpy.run_path(str(file), run_name="__main__")
    except (Enough, KeyboardInterrupt) as end:
        if isinstance(end, KeyboardInterrupt):
            raise
    except SystemExit as end:
        if end.code not in (None, 0):
            return f"'{file}' ended itself with {shown(end.code)}: give the arguments that it needs behind its name"
    except InputError as refusal:
        line = _line(refusal, file)
        watch.report(from_message("refused", str(refusal), f"{file.name}:{line}" if line else ""))
    except BaseException as problem:
        line = _line(problem, file)
        text = f"'{file}' does not run: {described(problem)}"
        return text + (f" (line {line})" if line else "")
    return ""


def _line(problem: BaseException, file: Path) -> int | None:
    """Return the last line of a file that a problem came through."""
    frames = traceback.extract_tb(problem.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == file.resolve()]
    return lines[-1] if lines else None


@contextmanager
def _as_program(file: Path, arguments: Sequence[str]) -> Iterator[None]:
    """A context with a script's arguments, in which it can import what is beside it."""
    before = sys.argv
    sys.argv = [str(file), *arguments]
    try:
        with importable(file.resolve().parent):
            yield
    finally:
        sys.argv = before


@contextmanager
def _subjects_of(watch: Watch) -> Iterator[None]:
    """A context in which all that is made sparse or sharpness-aware is watched."""

    def training_made(make: Any) -> Any:
        @functools.wraps(make)
        def made(self: Any, model: Any, state: Any, optimizer: Any, *args: Any, **kwargs: Any) -> None:
            make(self, model, state, optimizer, *args, **kwargs)
            watch.add(Subject(model, optimizer, self, users_line()))

        return made

    def optimizer_made(make: Any) -> Any:
        @functools.wraps(make)
        def made(self: Any, *args: Any, **kwargs: Any) -> None:
            make(self, *args, **kwargs)
            watch.add(Subject(None, self, None, users_line()))

        return made

    def followed(follow: Any) -> Any:
        @functools.wraps(follow)
        def following(self: Any, model: Any) -> Any:
            result = follow(self, model)
            watch.add(Subject(model, self, None, users_line()))
            return result

        return following

    with (
        replaced(SparseTraining, "__init__", training_made),
        replaced(SharpnessAware, "__init__", optimizer_made),
        replaced(SharpnessAware, "follow", followed),
    ):
        yield
