"""Command lines at random: every flag that a command's parser has, with values that fit, that do not, and hostile ones."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import tyro
from hypothesis import strategies as st

from flatsparse.cli.entry import SUMMARIES, commands
from flatsparse.common.errors import InputError
from flatsparse.methods import METHODS
from flatsparse.sparse.distributions import DISTRIBUTIONS

from .calling import ODD, QUICK, Kept, Reached, called, checked

WORK = (  # what commands begin with when all is checked
    "flatsparse.experiments.run.loop.train_epoch",
    "flatsparse.experiments.run.loop.finish",
    "flatsparse.experiments.grid.store.executor_of",
    "flatsparse.experiments.scripts.comparison.executor_of",
    "flatsparse.experiments.reproduce.run._measure",
    "flatsparse.experiments.reproduce.rehearse.local_executor",
    "flatsparse.experiments.evaluate.record.evaluated",
    "flatsparse.experiments.evaluate.record.predictions",
    "flatsparse.experiments.evaluate.record.after_changes",
    "flatsparse.experiments.landscape.measure._measure_all",
    "flatsparse.experiments.bench.suite.measure",
    "flatsparse.experiments.export._checked",
)
HUB = ("flatsparse.experiments.data.sources.hub_parts", "flatsparse.experiments.data.cifar.hub_parts")
WRITTEN_AGAIN = ("report.html", "evaluation.html", "evaluation.json", "landscape.json")  # by the command that wrote it
NAMES = st.one_of(
    st.sampled_from(
        [
            *(
                "<script>alert(1)</script>",
                "$x$",
                "\\",
                "a\nb",
                "'\"",
                "--",
                "-",
                "",
                " ",
                "~",
                "~nobody",
                ".",
                "..",
                "/",
                "//",
            ),
            *(
                "\x00",
                "a\x00b",
                "\x1b]0;x\x07",
                "\udcff",
                "\ud800",
                "عربي",
                "中文",
                "👩‍👩‍👧",
                "\u202eabc",
                "\u2028",
                "é",
                "e\u0301",
            ),
            *(
                "x" * 300,
                "x/" * 3000,
                "{}",
                "%s",
                "[bold]",
                "con",
                "a:b",
                "file:///etc/passwd",
                "None",
                "nan",
                "../away",
                "away",
            ),
        ]
    ),
    st.text(max_size=20).map(lambda text: text.lstrip("/")),  # nothing is to be written at the root
    st.binary(max_size=8).map(lambda content: content.decode("utf-8", "surrogateescape").lstrip("/")),
)
PATHS = st.sampled_from(
    [
        *(
            "run",
            "other",
            "compared",
            "store",
            "images",
            "notes.txt",
            "mine",
            "mine/notes.txt",
            "away",
            "own.py",
            "new",
        ),
        *("new/deeper", "run/config.json", "store/own-smoke.json", ODD, f"{ODD}/images", f"{ODD}/own.py"),
    ]
)
WORDS = st.one_of(
    st.sampled_from(
        [*METHODS, *DISTRIBUTIONS, "digitnet", "resnet20", "mlp", "digits", "images", "all", "layers", "methods"]
    ),
    st.sampled_from(
        ["own.py:Method", "own.py:network", "own.py:task", "own.py:train", "own.py", "own.py:absent", "absent.py:x"]
    ),
    st.sampled_from(
        ["cpu", "cuda", "auto", "meta", "every=5", "8GB", "step", "throughput", "memory", "sparse", "int8", "noise0.2"]
    ),
    st.sampled_from(
        ["dense", "masks", "csr", "Conv*", "*", "[", "Linear", "mest", "fog", "table1", "figure3", "own", "all"]
    ),
    st.sampled_from([f"{ODD}/own.py:{name}" for name in ("Method", "network", "task", "train", "absent")]),
    PATHS,
)
INTEGERS = st.one_of(
    st.integers(0, 70).map(str),
    st.sampled_from(["-1", "1e3", "1_0", "10" * 20, str(2**63), str(-(2**63)), "٣", "0x10", "+1"]),
)
FLOATS = st.one_of(
    st.sampled_from(
        ["0", "0.5", "0.9", "1", "0.05", "2", "nan", "inf", "-inf", "-0.0", "1e-320", "1e308", "1e999", "-1", "٠٫٥"]
    ),
    st.floats(width=32).map(str),
)
FIRST = {
    "bench": ["step", "memory", "sparse"],
    "reproduce": ["own.py", f"{ODD}/own.py", "figure2", "sweep"],
    "list": ["layers", "all"],
}
FIRST |= {
    "export": ["run"],
    "evaluate": ["run"],
    "landscape": ["run"],
    "doctor": ["own.py", f"{ODD}/own.py"],
    "compare": ["own.py:train"],
}
SLOW = ("--cluster", "--track", "-h", "--help")  # they start servers, or other people's programs; or only print


@functools.cache
def actions(command: str) -> tuple[argparse.Action, ...]:
    """Return what a command's parser takes."""
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.HelptextFromCommentsOff, tyro.conf.OmitArgPrefixes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # get_parser is to go; until then it says what the parser itself goes by
        parser = tyro.extras.get_parser(commands([command])[command], config=config)
    return tuple(action for action in parser._actions if not set(action.option_strings) & set(SLOW))


def _value(action: argparse.Action) -> st.SearchStrategy[str]:
    kind = str(action.metavar)
    fitting = [NAMES]
    if action.choices:
        fitting += [st.sampled_from([str(choice) for choice in action.choices])] * 6
    fitting += [INTEGERS] * 6 if "INT" in kind else []
    fitting += [FLOATS] * 6 if "FLOAT" in kind else []
    fitting += [PATHS] * 6 if "PATH" in kind or "FILE" in kind else []
    fitting += [WORDS] * 6 if "STR" in kind else []
    return st.one_of(*(fitting if len(fitting) > 1 else [NAMES, WORDS]))


@functools.cache
def _flag(command: str, number: int) -> st.SearchStrategy[list[str]]:
    action = actions(command)[number]
    counts = (0, 0) if action.nargs == 0 else (1, 1) if action.nargs in (1, "?", None) else (0, 3)
    values = st.lists(_value(action), min_size=counts[0], max_size=counts[1])
    name = st.sampled_from(action.option_strings).map(lambda flag: [flag]) if action.option_strings else st.just([])
    return st.tuples(name, values).map(lambda parts: parts[0] + parts[1])


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """Command lines of a few flags, most of which fit, so that what is behind the parser is met too."""
    command = draw(st.sampled_from([*SUMMARIES, *SUMMARIES, *SUMMARIES, "train", "", "trane"]))
    if command not in SUMMARIES:
        return [command, *draw(st.lists(NAMES, max_size=3))]
    line = [command]
    if command in FIRST and draw(st.integers(0, 4)):
        line.append(draw(st.sampled_from(FIRST[command])))
    if command == "bench":
        line.append("--quick")
    if command == "train":
        line += QUICK
    kinds = range(len(actions(command)))
    for number in draw(st.lists(st.sampled_from(kinds), max_size=4)):
        line += draw(_flag(command, number))
    if not draw(st.integers(0, 19)):
        line += draw(st.lists(NAMES, max_size=2))
    return line


def reached(*_: object, **__: object) -> None:
    """Stand for work."""
    raise Reached


@contextlib.contextmanager
def without_work() -> Iterator[None]:
    """A context in which commands check all that they check, and do not begin their work."""
    with contextlib.ExitStack() as stack:
        for place in WORK:
            stack.enter_context(mock.patch(place, reached))
        for place in HUB:
            stack.enter_context(mock.patch(place, not_reached))
        yield


def not_reached(source: str, name: str) -> None:
    """Stand for the hub, which tests do not ask."""
    raise InputError(f"'{name}' cannot be read: nobody answers")


def check(line: list[str], files: Kept) -> str:
    """Call a command line in a folder with the set of files. Returns what came of it."""
    with files.watched(WRITTEN_AGAIN), without_work():
        outcome = called(line)
    return "refused" if outcome.status else "taken"


PROCESS = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from flatsparse.cli import main
from tests.stress.command_lines import Reached, without_work
with without_work():
    try:
        main()
    except Reached:
        pass
"""


def words_for_processes() -> st.SearchStrategy[list[str]]:
    """Command lines that the system can pass on."""
    return command_lines().map(lambda line: [word for word in line if _can_be_passed(word)])


def _can_be_passed(word: str) -> bool:
    try:
        return b"\0" not in os.fsencode(word) and len(word) < 4000
    except UnicodeEncodeError:
        return False


def check_process(line: list[str], files: Kept) -> str:
    """Run a command line in a process of its own. Returns what came of it."""
    root = str(Path(__file__).parents[2])
    with files.watched(WRITTEN_AGAIN):
        done = subprocess.run(
            [sys.executable, "-c", PROCESS, root, *line], capture_output=True, check=False, timeout=300
        )
    checked(line, done.returncode, done.stderr.decode("utf-8", "surrogateescape"))
    return "refused" if done.returncode else "taken"
