"""Names that mean something to a terminal, a picture or a page are shown as they are, by every command."""

import ast
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import flatsparse
from flatsparse.cli import main
from flatsparse.common.errors import InputError
from flatsparse.common.json_files import read_json
from flatsparse.experiments import export, plotting
from flatsparse.experiments.plotting import caption
from flatsparse.experiments.terminal import Console
from tests.cli.test_cli import QUICK

PACKAGE = Path(flatsparse.__file__).parent
NAMES = [
    "_o[/b]",
    "[bold]o[/bold]",
    "[link=x",
    "$o$_{",
    "o$",
    ":smile:",
    "-o %s {0}",
    "<b>&\"'",
    "o\udcff",
    "ö\u200b ²",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_console_shows_a_text_as_it_is(name):
    console = Console(file=io.StringIO(), width=80)
    console.print(name, style="bold")
    assert console.file.getvalue() == name + "\n"


def shown(name):
    """The texts that matplotlib draws, as it understands them."""
    figure = Figure()
    axis = figure.subplots()
    axis.set_title(caption(name))
    axis.plot([0], [0], label=caption(name))
    texts = [axis.title, *axis.legend().get_texts()]
    figure.savefig(io.BytesIO(), format="png")
    return [text._preprocess_math(text.get_text()) for text in texts]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_picture_shows_a_text_as_it_is(name):
    wanted = name.encode(errors="replace").decode()
    assert shown(name) == [(f" {wanted}" if name.startswith("_") else wanted, False)] * 2


def test_every_console_is_ours_and_every_picture_is_written_whole():
    """There is one place that prints, and one that draws into files."""
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text())
        imported = [
            f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        ]
        called = {
            node.func.attr for node in ast.walk(tree) if isinstance(node, ast.Call) and hasattr(node.func, "attr")
        }
        if file.name != "terminal.py":
            assert not {"rich.console", "rich.console.Console", "rich.print", "rich.markup.escape"} & set(imported), (
                file
            )
        if file.name != "plotting.py":
            assert "savefig" not in called, file


def test_a_picture_that_cannot_be_written_is_a_line(tmp_path):
    with pytest.raises(InputError, match="cannot write"):
        plotting.save(Figure(), tmp_path / "absent" / "a.png")
    plotting.save(Figure(), tmp_path / "a.png")
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_equal_pictures_are_equal_texts():
    drawn = set()
    for _ in range(2):
        figure = Figure()
        figure.subplots().plot([0, 1], [1, 2], label="a")
        drawn.add(plotting.svg(figure))
    assert len(drawn) == 1
    assert drawn.pop().startswith("<svg")


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """A folder to work in, whose name and whose runs' names mean something everywhere."""
    monkeypatch.setattr(export, "SECONDS", 0.0)
    folder = tmp_path / "[bold]$x$_[/b]\udcff :smile:"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


ODD = "_[b] $ $\\q :x: <i>\udcff"


@pytest.mark.filterwarnings("ignore:Glyph")
def test_every_command_takes_folders_of_any_name(hostile, capsys):
    quick = ["--jobs", "1", "--device", "cpu"]
    here = str(hostile / ODD)

    def said(*arguments):
        main(arguments)
        return capsys.readouterr().out

    assert "report.html" in said("train", *QUICK, "--out", f"{here}a")
    assert "report.html" in said("train", *QUICK, "--out", f"{here}a", "--resume")
    said("train", *QUICK, "--out", f"{ODD}b", "--sharpness", "s2sam")
    assert "export.json" in said("export", f"{here}a", "--format", "dense", "masks", "small", "csr", "--images", "20")
    surface = ["--points", "3", "--images", "20", "--pairs", "2", "--hessian-images", "0", *quick]
    told = said("landscape", f"{here}a", f"{ODD}b", *surface, "--out", f"{here}l")
    assert "_[b] $ $\\q :x: <i>" in " ".join(told.split())
    chosen = ["--corruptions", "--only", "fog", "--images", "20", "--reference", f"{ODD}b", *quick]
    told = said("evaluate", f"{here}a", f"{ODD}b", *chosen, "--out", f"{here}e")
    assert "_[b] $ $\\q :x: <i>" in " ".join(told.split())
    said("compare", *QUICK, "--seeds", "1", "--sharpness", "random", *quick, "--out", f"{here}c")
    assert read_json(Path(f"{here}c", "compare.json"))
    said("reproduce", "figure2", "--out", f"{here}r", *quick)
    said("report", "--store", f"{here}r", "--out", f"{here}.html")
    for page in (
        f"{here}a/report.html",
        f"{here}l/report.html",
        f"{here}e/evaluation.html",
        f"{here}c/report.html",
        f"{here}.html",
    ):
        assert "<i>" not in Path(page).read_text()


# -- where nobody listens ---------------------------------------------------------------------------------------------

TRAIN = ["train", *QUICK, "--method", "static", "--out"]


def ends(arguments, stream, monkeypatch):
    """The status of a command that tells what it has to tell to a stream."""
    monkeypatch.setattr(sys, "stdout", stream)
    try:
        main(arguments)
    except SystemExit as end:
        return end.code
    finally:
        if stream is not None:
            stream.close()  # and the end of the process would not fail on what is left to tell
    return 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("command", ["train", "list", "list layers", "--help"])
def test_output_to_a_full_device_is_a_line(tmp_path, monkeypatch, capsys, command, buffered):
    device = os.open("/dev/full", os.O_WRONLY)
    full = os.fdopen(device, "w") if buffered else io.TextIOWrapper(os.fdopen(device, "wb", 0), write_through=True)
    arguments = [*TRAIN, str(tmp_path / "run")] if command == "train" else command.split()
    assert ends(arguments, full, monkeypatch) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("flatsparse: error: cannot write, perhaps to standard output (No space left")
    if command == "train":
        monkeypatch.undo()
        main([*arguments, "--resume"])
        assert (tmp_path / "run" / "result.json").is_file()


@pytest.mark.skipif(os.name != "posix", reason="pipes of another kind")
@pytest.mark.parametrize("command", ["train", "list", "list layers", "--help"])
def test_a_reader_who_goes_away_ends_a_command_quietly(tmp_path, monkeypatch, capsys, command):
    ours, theirs = os.pipe()
    os.close(ours)
    arguments = [*TRAIN, str(tmp_path / "run")] if command == "train" else command.split()
    assert ends(arguments, os.fdopen(theirs, "w"), monkeypatch) == 141
    assert capsys.readouterr().err == ""


def test_a_command_without_an_output_does_its_work(tmp_path, monkeypatch):
    assert ends([*TRAIN, str(tmp_path / "run")], None, monkeypatch) == 0
    assert (tmp_path / "run" / "result.json").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no full device")
def test_the_end_of_the_process_has_nothing_to_add(tmp_path):
    call = [sys.executable, "-m", "flatsparse", *TRAIN, "run"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(call, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "o\udcff"])
def test_an_error_is_one_line_of_plain_text_whatever_it_quotes(tmp_path, capsys, name):
    place = tmp_path / name
    place.write_text("")
    with pytest.raises(SystemExit) as end:
        main(["train", *QUICK, "--out", str(place)])
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert said.count("\n") == 1
    assert said.strip("\n").isprintable()
