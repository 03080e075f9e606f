"""The command line. Exit status 0, or 2 with a line on standard error for unusable input; ``doctor --strict`` also has 1."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib
import io
import itertools
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from flatsparse.common.errors import InputError, as_line

OTHERS_LATER = 5.0  # seconds after which another process than the main one prints its error


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``flatsparse COMMAND …``."""
    _open_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="replace"
            )  # a terminal without UTF-8 shows a question mark for ρ, not a traceback
    try:
        try:
            _run(sys.argv[1:] if arguments is None else arguments)
        finally:
            _flush()
    except KeyboardInterrupt:
        _print_line(
            "stopped; the same command (with --resume where it has that) continues from the last checkpoint, if any"
        )
        sys.exit(130)
    except BrokenPipeError:  # the reader of the output has closed it
        _discard_output()
        sys.exit(141)  # as any other program that a pipe ends
    except OSError as problem:
        if problem.filename is not None:
            _fail(f"cannot use '{problem.filename}' ({problem.strerror}): what was saved before is untouched")
        if problem.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF):
            raise
        _discard_output()
        _fail(f"cannot write, perhaps to standard output ({problem.strerror}): what was saved before is untouched")


def _open_closed() -> None:
    """Open nothing for standard streams that are closed: a file in their place would get what libraries of C print."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def _discard_output() -> None:
    """Discard what is still to be written, or the end of the process would fail on it once more."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, AttributeError):
            try:
                stream.flush()
            except OSError:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """A context in which a warning is one line, without the line of code that raised it."""

    def one_line(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        return f"flatsparse: warning: {as_line(' '.join(str(message).split()))}\n"

    usual = warnings.formatwarning
    warnings.formatwarning = one_line
    try:
        yield
    finally:
        warnings.formatwarning = usual


# Each command and its summary, which is the docstring of its class: the list of all is then shown without importing them.
SUMMARIES = {
    "train": "Train one sparse network and write its run folder.",
    "compare": "Compare none, SAM, S²-SAM and a random direction on the same sparse training, seed by seed.",
    "reproduce": "Reproduce a table or figure: run its cells, judge its claims, show them beside the published numbers.",
    "report": "Show the tables reproduced so far beside the published numbers, as text and as one HTML page.",
    "evaluate": "Evaluate finished runs again: on their test samples, on corrupted images, or after changes of their weights.",
    "doctor": "Run a training script for some steps, and say what is wrong with its loop.",
    "landscape": "Draw the loss around finished runs, side by side on one scale, and measure how rough it is.",
    "bench": "Measure the cost of S²-SAM and SAM over SGD in step time, throughput or memory, or the time that sparsity saves.",
    "export": "Write a finished run in forms that others can use, each checked by reading it back.",
    "list": "List the available choices; or, with layers, what a choice makes sparse and what it costs, without training.",
}


def commands(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the commands: those that the arguments name are their classes, others mere names where that is enough."""
    first = next(iter(arguments), "--help")
    named = {first} & SUMMARIES.keys() or (set() if first in ("-h", "--help") else set(SUMMARIES))
    return {name: _command(name) if name in named else _named(summary) for name, summary in SUMMARIES.items()}


def _command(name: str) -> Any:
    return getattr(importlib.import_module(f"flatsparse.cli.{name}"), name.capitalize())


def _named(summary: str) -> Any:
    """Return a command that has a summary and no options."""
    return dataclasses.make_dataclass("Command", [], namespace={"__doc__": summary})


def _run(arguments: Sequence[str]) -> None:
    if any("\0" in word for word in arguments):  # no shell passes one on, and no file's name has one
        _fail("an argument holds a zero byte, which no name has: take it out")
    try:
        command = _parse(commands(arguments), arguments)
    except ModuleNotFoundError as missing:
        _fail(f"the command line needs '{missing.name}': install it with pip install 'flatsparse[lab]'")
    try:
        with _plain_warnings():
            status = command()
    except InputError as problem:
        _fail(str(problem), problem.is_first)
    except SystemExit as end:  # no command of ours exits by itself
        _fail(
            f"code that was called ended the command by SystemExit({end.code!r}): take the exit out of the file given"
        )
    if status:
        sys.exit(status)


def _parse(commands: dict[str, Any], arguments: Sequence[str]) -> Any:
    """Return the chosen command with its options; the parser's boxed message becomes one line."""
    import tyro

    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            return tyro.extras.subcommand_cli_from_dict(
                commands,
                prog="flatsparse",
                description="Train sparse networks, and find flat minima while you do.",
                args=_separated(list(arguments)) or ["--help"],
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.HelptextFromCommentsOff, tyro.conf.OmitArgPrefixes),
            )
    except SystemExit as end:
        if end.code == 0:
            raise
        _fail(_one_line(output.getvalue()) + _hint(list(arguments)))


def _separated(arguments: list[str]) -> list[str]:
    """Return the arguments, of ``doctor`` with ``--`` before those of its script: all behind it but ``--steps``.

    >>> _separated(["doctor", "own.py", "--steps", "9", "--lr", "1"])
    ['doctor', '--steps', '9', 'own.py', '--', '--lr', '1']
    """
    script = next((i for i, word in enumerate(arguments) if word.endswith(".py")), None)
    if arguments[:1] != ["doctor"] or script is None:
        return arguments
    own, rest = arguments[1:script], arguments[script + 1 :]
    if rest and rest[0].partition("=")[0] == "--steps" and not any(word.startswith("--steps") for word in own):
        count = 1 if "=" in rest[0] else 2
        own, rest = own + rest[:count], rest[count:]
    return ["doctor", *own, arguments[script], "--", *(rest[1:] if rest[:1] == ["--"] else rest)]


def _one_line(boxed: str) -> str:
    """Return the parser's message without the box around it and the hint below it."""
    text = re.sub(r"[│╭╮╰╯|+]|─+|-{3,}|\[/?bold\]", " ", boxed.partition("\n")[2])
    lines = [line.strip() for line in text.splitlines() if line.strip() and "--help" not in line]
    message = re.split(r" Argument helptext:| For full helptext", re.sub(r"\s+", " ", " ".join(lines)))[0]
    return message or "the arguments do not fit"


def _hint(arguments: list[str]) -> str:
    """Return a hint where several radii were given to ``compare``."""
    if arguments[:1] != ["compare"] or "--rho" not in arguments:
        return ""
    after = arguments[arguments.index("--rho") + 1 :]
    radii = list(itertools.takewhile(lambda word: not word.startswith("--"), after))
    if len(radii) > 1:
        return ": --rho is one radius for all; --tune chooses among --rho-grid " + " ".join(radii)
    return ""


def _fail(message: str, is_first: bool | None = None) -> Any:
    rank = os.environ.get("RANK", "0") if "TORCHELASTIC_RUN_ID" in os.environ else "0"
    if is_first is None and rank != "0":
        # Mostly the main process has the same error; torchrun ends this one once it has printed it.
        time.sleep(OTHERS_LATER)
        message = f"rank {rank}: {message}"
    if is_first is not False:
        _print_line(f"error: {message}")
    sys.exit(2)


def _print_line(message: str) -> None:
    """Print one line on standard error, whatever it quotes; nothing where that is closed."""
    try:
        print(f"flatsparse: {as_line(message)}", file=sys.stderr, flush=True)
    except OSError:
        _discard_output()


if __name__ == "__main__":
    main()
