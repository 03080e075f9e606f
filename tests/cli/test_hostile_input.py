"""Single cases of what ``tests/stress/inputs.py`` draws at random: each was a traceback, a wait, or a name that was obeyed."""

import io
import os
import shlex
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from rich.table import Table
from rich.text import Text

from flatsparse.cli import main
from flatsparse.cli.entry import _plain_warnings
from flatsparse.common.errors import InputError
from flatsparse.common.files import read
from flatsparse.experiments.claims import plain_name
from flatsparse.experiments.data.sources import load
from flatsparse.experiments.grid.ray_cluster import RayCluster
from flatsparse.experiments.labels import color
from flatsparse.experiments.report import pages
from flatsparse.experiments.run.load import load_run
from flatsparse.experiments.terminal import Console
from tests.cli.test_cli import QUICK, fails
from tests.experiments.images import write_parts
from tests.experiments.own_tasks import START

TITLE, RED, BACKWARDS = "\x1b]0;owned\x07", "\x1b[31m", "\u202etxt"


@pytest.mark.parametrize("name", [TITLE, RED, BACKWARDS, "\x9b31m", "a\rb", "\x08\x08x", "\u2028", "\u2066x"])
@pytest.mark.parametrize("made", [str, Text])
def test_a_terminal_shows_what_it_would_obey_as_escapes(name, made):
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    grid = Table("head")
    grid.add_row(made(name))
    console.print(made(name), highlight=False)
    console.print(grid)
    said = console.file.getvalue()
    assert all(c.isprintable() or c == "\n" for c in said)
    if made is str:  # rich leaves some out of a Text
        assert said.count(name.encode("unicode_escape").decode()) == 2


def test_other_scripts_are_shown_as_they_are():
    console = Console(file=io.StringIO(), width=80)
    for name in ("مرحبا", "漢字", "👩\u200d👩\u200d👧", "می\u200cخواهم", "o\udcff"):
        console.print(name)
        assert name in console.file.getvalue()


def test_an_error_and_a_warning_show_what_they_quote_as_escapes(capsys):
    told = fails(capsys, "train", "--method", f"a\n{TITLE}")
    assert r"unknown method 'a\n\x1b]0;owned\x07'" in told
    with _plain_warnings():
        line = warnings.formatwarning(TITLE, UserWarning, "file.py", 1)
    assert line == "flatsparse: warning: \\x1b]0;owned\\x07\n"


@pytest.mark.parametrize("command", [["train", "--out"], ["export"], ["list"], ["train", "--data"]])
def test_an_argument_with_a_zero_byte_is_an_error_in_one_line(command, capsys):
    assert "zero byte" in fails(capsys, *command, "a\0b")


def test_names_of_layers_are_escaped_where_they_are_listed(tmp_path, capsys):
    (tmp_path / "own.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.add_module('\\x1b[31m', nn.Linear(48, 10))\n"
        "    def forward(self, x): return getattr(self, '\\x1b[31m')(x.flatten(1))\ndef net(classes): return Net()\n"
    )
    main(["list", "layers", "--model", f"{tmp_path}/own.py:net", "--image", "3", "4", "4"])
    assert "\\x1b[31m.weight" in capsys.readouterr().out


def test_a_folder_of_a_long_name_in_another_script_has_a_name_that_file_systems_take(tmp_path):
    assert len(os.fsencode(plain_name("漢" * 300))) <= 200
    (tmp_path / plain_name("漢" * 300)).mkdir()
    assert plain_name("x" * 300) == "x" * 150  # which stores know their runs by


def test_the_command_on_a_page_has_each_name_as_one_word(tmp_path):
    out = tmp_path / "$(touch owned); 'x"
    main(["train", *QUICK, "--method", "static", "--out", str(out)])
    run = load_run(out)
    with pytest.MonkeyPatch.context() as patch:
        written = {}
        patch.setattr(pages.html, "write", lambda file, template, **values: written.update(values))
        pages.write_run(run.run, run.result, out)
    assert shlex.split(written["command"])[-2:] == ["--out", str(out)]


# -- code of a user's own ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raised", ["InputError()", "InputError('\\n')", "KeyError()", "ValueError('\\x1b[31m')"])
def test_an_error_without_words_is_told_by_its_kind(raised, capsys, tmp_path):
    (tmp_path / "own.py").write_text(f"from flatsparse import InputError\nraise {raised}\n")
    told = fails(capsys, "train", "--method", f"{tmp_path}/own.py:M")
    assert f"does not run: {raised.partition('(')[0]}:" in told


TASK = (
    START
    + """
class Odd:
    __eq__ = __repr__ = None
    __hash__ = None

def loss(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()

def score(model, batches):
    return {"error": sum(float(loss(model, batch)) for batch in batches)}

def data(count):
    inputs = numbers(count, 6, count)
    return TensorDataset(inputs, inputs.sum(1, keepdim=True))

class Products(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 8)
    def forward(self, x):
        return (x.unsqueeze(1) * self.layer.weight).sum(-1).sum(-1, keepdim=True)

def task():
    return Task(lambda: nn.Linear(6, 1), data(40), data(20), loss, score, better="lower")
"""
)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("data(20)", "None", "is a NoneType without a length"),
        ("data(40)", "None", "is a NoneType without a length"),
        ('better="lower"', "better=Odd()", "better of '"),
        ('better="lower"', "better=[]", "better of '"),
    ],
)
def test_a_task_with_a_field_of_another_kind_is_an_error_in_one_line(old, new, told, capsys, tmp_path):
    assert old in TASK
    (tmp_path / "own.py").write_text(TASK.replace(old, new))
    assert told in fails(capsys, "train", "--task", f"{tmp_path}/own.py:task", "--out", str(tmp_path / "run"))


def test_a_run_whose_operations_are_not_counted_is_finished_and_read_again(capsys, tmp_path):
    (tmp_path / "own.py").write_text(TASK.replace("lambda: nn.Linear(6, 1)", "Products"))
    task, out = ["--task", f"{tmp_path}/own.py:task"], str(tmp_path / "run")
    main(["train", *task, "--epochs", "1", "--batch-size", "20", "--out", out])
    assert "100.0% of dense training's FLOPs" in " ".join(capsys.readouterr().out.split())
    assert load_run(Path(out)).result.flops.train_dense == 0
    main(["list", "layers", *task])
    assert "1.000 of dense (0)" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["    return (model(batch", '    return {"error"', "    return Task("])
def test_a_stop_in_code_of_ones_own_is_a_stop(place, tmp_path):
    (tmp_path / "own.py").write_text(TASK.replace(place, f"    raise KeyboardInterrupt\n{place}"))
    with pytest.raises(SystemExit) as end:
        main(["train", "--task", f"{tmp_path}/own.py:task", "--out", str(tmp_path / "run")])
    assert end.value.code == 130


METHOD = """
from dataclasses import dataclass
from flatsparse.methods import SET

@dataclass(frozen=True)
class Method:
    def plan(self, shapes, steps):
        return SET().plan(shapes, steps)
"""


@pytest.mark.skipif(os.name != "posix" or sys.platform == "darwin", reason="names are text there")
def test_code_and_data_in_a_folder_whose_name_is_no_text_are_taken(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = Path("o\udcff $x\n<b>")
    write_parts(folder / "images", {"train": ("a", "b"), "test": ("a", "b")})
    (folder / "own.py").write_text(TASK + METHOD)
    own = f"{folder}/own.py"
    main(["train", *QUICK, "--method", f"{own}:Method", "--out", "a"])
    assert load_run(Path("a")).result.method == f"{own}:Method"
    main(["train", "--task", f"{own}:task", "--epochs", "1", "--batch-size", "20", "--out", "b"])
    sizes = ["--validation-size", "2", "--batch-size", "2", "--epochs", "2"]
    main(["train", "--data", f"{folder}/images", "--model", "resnet20", *sizes, "--out", "c"])
    assert load_run(Path("c"))


def test_a_color_is_of_any_name():
    assert color("\udcff").startswith("#")


# -- pipes ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="the system has no such pipes")
@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(kind, tmp_path):
    (tmp_path / "data").mkdir()
    for part in ("train", "test"):
        os.mkfifo(tmp_path / "data" / f"{part}.{kind}")
    with pytest.raises(InputError, match="no file but a pipe"):
        load(str(tmp_path / "data"))
    with pytest.raises(InputError, match="no file but a pipe"):
        read(tmp_path / "data" / f"train.{kind}")


# -- clusters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1:99999999", "ray://127.0.0.1:x", "\udcff:1", "a\n:1"])
def test_an_address_that_no_cluster_can_have_is_an_error_in_one_line(address, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=pytest.fail))
    with pytest.raises(InputError, match=r"cannot be joined \(\S"):
        RayCluster(address, 1)


@pytest.mark.parametrize("problem", [AssertionError(), KeyError(), ValueError("\n")])
def test_a_cluster_that_cannot_say_why_it_cannot_be_joined_is_an_error_in_one_line(problem, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=Mock(side_effect=problem)))
    with pytest.raises(InputError, match=rf"cannot be joined \({type(problem).__name__}\)"):
        RayCluster("auto", 1)
