"""A full disk, outputs that are closed or full, folders that cannot be written or vanish, and clocks that jump.

Each ends in one line and exit status 2, or 141 where the reader of the output has gone, and what was saved before is intact.
"""

import contextlib
import io
import os
import random
import shutil
import sys
import time
import traceback
from pathlib import Path

import pytest

from flatsparse.cli import main
from flatsparse.common.json_files import read_json, read_json_lines
from flatsparse.experiments.run import loop

from .kill_cases import DATA, RECIPE, SCRIPT
from .kill_checks import files, read_whole

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
TINY = (*DATA, "--batch-size", "32", "--epochs", "2", "--device", "cpu", "--sparsity", "0.9")
SERIAL = ("--jobs", "1", "--device", "cpu")
COMMANDS = {
    "train": ("train", *TINY),
    "compare": ("compare", *TINY, "--sharpness", "s2sam", "--seeds", "1", "--jobs", "1"),
    "compare a script": ("compare", "script.py:train", "--seeds", "1", "--sharpness", "s2sam", *SERIAL),
    "landscape": (
        *("landscape", "run", "--points", "3", "--images", "20", "--pairs", "1", "--hessian-images", "0", *SERIAL),
    ),
    "export": ("export", "run", "--format", "csr", "--images", "20"),
    "evaluate": ("evaluate", "run", "--after", "int8", "--images", "20", *SERIAL),
    "reproduce": ("reproduce", "recipe.py", "--scale", "smoke", *SERIAL),
}
LINE = "flatsparse: error: "
EACH = [pytest.param(c, marks=() if c in ("train", "export") else pytest.mark.slow) for c in COMMANDS]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the commands work on, trained in this process, so that its forks have all imports."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "script.py").write_text(SCRIPT)
    (folder / "recipe.py").write_text(RECIPE)
    with contextlib.redirect_stdout(io.StringIO()):
        main([*COMMANDS["train"], "--out", str(folder / "run")])
    return folder


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    shutil.copytree(place, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def ended(arguments, first=lambda: None, *, stdout=os.devnull):
    """Run a command line in a fork that does something first; returns its status and standard error."""
    error = Path("error")
    if not (child := os.fork()):
        status = 70
        try:
            for number, name in ((1, stdout), (2, error)):
                os.dup2(name if isinstance(name, int) else os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
            first()
            try:
                main(arguments)
                status = 0
            except SystemExit as end:
                status = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), error.read_text()


def check_line(status, said):
    assert (status, said.count("\n")) == (2, 1), said
    assert said.startswith(LINE)


def is_clean(folder):
    """Every file is whole, and none is temporary."""
    assert [file.name for file in folder.rglob(".*")] == []
    return [read_whole(file) for file in files(folder)]


def at_most(size):
    """Let no file be larger, as on a disk that is full then."""
    import resource

    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("size", [300, pytest.param(2_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("command", EACH)
def test_a_full_disk_is_a_line_and_the_work_continues_when_there_is_room(here, command, size):
    arguments = [*COMMANDS[command], "--out", "out"]
    check_line(*ended(arguments, at_most(size)))
    is_clean(here / "out")
    resume = [] if command in ("export", "evaluate", "reproduce") else ["--resume"]
    retry = ["--retry"] if command.startswith(("compare", "reproduce")) else []
    assert ended([*arguments, *resume, *retry]) == (0, "")
    is_clean(here / "out")


def test_a_disk_that_is_full_in_the_middle_leaves_the_checkpoint_before(here):
    def full_later():
        save = loop.save_checkpoint

        def once(*arguments):
            save(*arguments)
            at_most(1000)()

        loop.save_checkpoint = once

    arguments = [*COMMANDS["train"], "--out", "out"]
    status, said = ended(arguments, full_later)
    check_line(status, said)
    assert "checkpoint.pt' (File too large): what was saved before is untouched" in said
    is_clean(here / "out")
    assert ended([*arguments, "--resume"]) == (0, "")
    assert read_whole(here / "out" / "model.safetensors") == read_whole(here / "run" / "model.safetensors")


def test_a_recipe_on_a_full_disk_names_each_failed_run_and_repeats_them(here):
    arguments = ["reproduce", "recipe.py", *SERIAL, "--out", "out"]
    check_line(*ended(arguments, at_most(300)))
    is_clean(here / "out")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
@pytest.mark.parametrize("command", EACH)
def test_a_full_output_is_a_line_and_a_closed_one_is_no_error(here, command):
    arguments = [*COMMANDS[command], "--out", "out"]
    status, said = ended(arguments, stdout="/dev/full")
    check_line(status, said)
    assert "cannot write, perhaps to standard output (No space left on device)" in said
    is_clean(here / "out")
    shutil.rmtree("out", ignore_errors=True)
    ours, theirs = os.pipe()
    os.close(ours)
    assert ended(arguments, stdout=theirs) == (141, "")
    is_clean(here / "out")


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)], ids=str)
def test_without_standard_streams_no_file_is_in_their_place(here, closed):
    def close():
        for number in closed:
            os.close(number)
        sys.stdout, sys.stderr = (None if n in closed else stream for n, stream in ((1, sys.stdout), (2, sys.stderr)))
        save = loop.save_checkpoint

        def printing(*arguments):
            for number in (1, 2):
                os.write(number, b"as a library of C does")
            return save(*arguments)

        loop.save_checkpoint = printing

    assert ended([*COMMANDS["train"], "--out", "out"], close)[0] == 0
    is_clean(here / "out")


@pytest.mark.parametrize("command", EACH)
def test_a_place_that_cannot_be_written_is_a_line(here, command):
    Path("file").write_text("x")
    for out in ("file", "file/below", "/proc/none"):
        check_line(*ended([*COMMANDS[command], "--out", out]))
    assert Path("file").read_text() == "x"
    if command != "reproduce":  # whose locks are in a folder of their own
        Path("out", ".lock").mkdir(parents=True)
        check_line(*ended([*COMMANDS[command], "--out", "out"]))


@pytest.mark.parametrize("back", [False, True])
def test_a_folder_that_vanishes_while_training_is_a_line(here, back):
    def vanishing():
        save = loop.save_checkpoint

        def once(*arguments):
            save(*arguments)
            shutil.rmtree("out")
            if back:
                Path("out").mkdir()

        loop.save_checkpoint = once

    arguments = [*COMMANDS["train"], "--out", "out"]
    status, said = ended(arguments, vanishing)
    if back:  # it cannot know
        assert status in (0, 2)
        return
    check_line(status, said)
    assert "cannot write 'out/metrics.jsonl' (No such file or directory)" in said
    assert not Path("out").exists()


def test_where_the_user_stands_vanishes(here):
    def vanishing():
        Path("gone").mkdir()
        os.chdir("gone")
        Path("../gone").rmdir()

    check_line(*ended([*COMMANDS["train"], "--out", "out"], vanishing))


@pytest.mark.parametrize("durations", ["stand still", "go back", "jump on"])
def test_a_clock_that_jumps_changes_no_result_and_no_duration_is_negative(here, durations):
    """The time of day is set to and fro; the other clock, which systems promise not to set, is slow, set, or slept."""

    def jumping():
        source, day, counter = random.Random(0), time.time, time.perf_counter
        began, shift = counter(), [0.0]

        def jumped():
            shift[0] += source.uniform(0, 1e5) if durations == "jump on" else -1.0
            return began if durations == "stand still" else counter() + shift[0]

        time.time = lambda: day() + source.uniform(-1e9, 1e9)
        time.perf_counter = jumped

    assert ended([*COMMANDS["train"], "--out", "out"], jumping) == (0, "")
    is_clean(here / "out")
    assert read_whole(here / "out" / "model.safetensors") == read_whole(here / "run" / "model.safetensors")
    result, curve = read_json(here / "out" / "result.json"), read_json_lines(here / "out" / "metrics.jsonl")
    times = [*result["seconds"].values(), result["images_per_second"], *(line["images_per_second"] for line in curve)]
    assert min(times) > 0
    assert (here / "out" / "checkpoint.previous.pt").is_file()
    arguments = [*COMMANDS["compare a script"], "--out", "arms"]
    assert ended(arguments, jumping) == (0, "")
    costs = [read_json(file)["cost"] for file in (here / "arms").rglob("result.json")]
    assert costs
    assert all(cost["seconds"] > 0 and cost["step_median"] > 0 for cost in costs)
