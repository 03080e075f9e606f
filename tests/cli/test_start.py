"""Commands import what they use."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import flatsparse
from flatsparse.cli.entry import SUMMARIES, commands

HEAVY = ("scipy", "matplotlib", "sklearn", "datasets", "pyarrow", "pandas", "torch._dynamo")
SCRIPT = """
import sys
from flatsparse.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code
print("LOADED", *sorted(sys.modules))
"""


def loaded_by(*arguments):
    """The modules that are loaded once a command has run in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(flatsparse.__file__).parents[1])}
    call = [sys.executable, "-c", SCRIPT, *arguments]
    printed = subprocess.run(call, env=environment, capture_output=True, text=True, check=True).stdout
    return set(printed.rpartition("LOADED")[2].split())


def test_the_list_of_commands_loads_no_command():
    loaded = loaded_by("--help")
    assert not loaded & {*HEAVY, "rich.console", *(f"flatsparse.cli.{name}" for name in SUMMARIES)}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["list"], ["train", "--help"], ["compare", "--help"]], ids=" ".join)
def test_commands_load_nothing_that_only_others_need(arguments):
    assert not loaded_by(*arguments) & set(HEAVY)


def test_summaries_are_those_of_the_commands():
    for name, summary in SUMMARIES.items():
        command = getattr(importlib.import_module(f"flatsparse.cli.{name}"), name.capitalize())
        assert command.__doc__ == summary


@pytest.mark.parametrize("first", ["train", "--help", "-h", "trian", "--epochs"])
def test_a_command_has_its_options_and_so_have_all_where_it_is_not_known_which(first):
    with_options = {name for name, command in commands([first]).items() if command.__dataclass_fields__}
    everything = set(SUMMARIES)
    assert with_options == {"train": {"train"}, "--help": set(), "-h": set()}.get(first, everything)
