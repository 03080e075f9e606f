"""`flatsparse doctor script.py`: findings with lines, exit statuses, and a script that is left as it is."""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

import pytest

from flatsparse.cli import main
from flatsparse.cli.entry import _separated
from flatsparse.diagnosis.script import examine_script

HEAD = """\
import sys, torch, flatsparse as fs
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
inputs, targets = torch.randn(32, 6), torch.randint(3, (32,))
"""
OPTIMIZER = """\
optimizer = fs.S2SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
training = fs.sparsify(model, optimizer, "rigl", sparsity=0.6, steps=100, every=10)
"""
LOOP = """\
for step in range(100):
    nn.functional.cross_entropy(model(inputs), targets).backward()
    optimizer.step()
    optimizer.zero_grad()
"""
END = 'open("end.txt", "w").write(repr(sum(float(p.double().sum()) for p in model.parameters())))\n'


def written(folder: Path, *parts: str) -> Path:
    file = folder / "own.py"
    file.write_text("".join(map(textwrap.dedent, parts)))
    return file


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def status_of(*arguments: object) -> int:
    try:
        main(["doctor", *map(str, arguments)])
    except SystemExit as end:
        return int(end.code)
    return 0


def line_of(file: Path, text: str) -> str:
    return f"own.py:{next(i for i, line in enumerate(file.read_text().splitlines(), 1) if text in line)}"


def test_a_right_script_has_no_finding_and_status_zero(folder, capsys):
    assert status_of(written(folder, HEAD, OPTIMIZER, LOOP, END)) == 0
    assert capsys.readouterr().out.splitlines() == ["no findings in 50 optimizer steps"]
    assert [file.name for file in folder.iterdir()] == ["own.py"]  # it was stopped, and the doctor writes nothing


def test_a_script_with_a_fault_has_its_line_in_a_table_and_if_asked_status_one(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    file = written(folder, HEAD, OPTIMIZER, LOOP.replace("optimizer.step()", "optimizer.base.step()"))
    assert status_of(file) == 0
    assert status_of("--strict", file) == 1
    said = capsys.readouterr().out
    assert line_of(file, "base.step()") in said
    assert "base-stepped" in said
    assert re.search(r"^\d+ findings? in 100 optimizer steps$", said, re.MULTILINE)


def test_a_finding_of_the_objects_has_the_line_that_made_them(folder):
    file = written(folder, HEAD, OPTIMIZER.replace("steps=100", "steps=20"), LOOP)
    (finding,) = examine_script(file, 50).findings
    assert (finding.name, finding.where) == ("steps-exceeded", line_of(file, "fs.sparsify"))


def test_what_sparsify_refuses_is_a_finding(folder):
    file = written(folder, HEAD, OPTIMIZER, OPTIMIZER.partition("\n")[2])
    (finding,) = examine_script(file, 50).findings
    assert (finding.name, finding.where) == ("refused", "own.py:8")
    assert "call detach()" in finding.cure


def test_rounds_that_a_script_never_begins_are_told_at_its_end(folder):
    method = OPTIMIZER.replace('"rigl"', '"lrr"').replace(", every=10", "")
    file = written(folder, HEAD, method, LOOP)
    (finding,) = examine_script(file, 200).findings
    assert (finding.name, finding.where) == ("rounds-never-begun", line_of(file, "fs.sparsify"))


def test_a_script_that_ends_early_never_ended_its_schedule(folder):
    file = written(folder, HEAD, OPTIMIZER, LOOP.replace("range(100)", "range(25)"))
    (finding,) = examine_script(file, 50).findings
    assert (finding.name, finding.where) == ("schedule-unfinished", line_of(file, "fs.sparsify"))
    assert examine_script(file, 25).findings == ()  # it was stopped


@pytest.mark.parametrize("steps", [1, 7])
def test_the_script_is_stopped_after_some_steps(folder, steps):
    file = written(folder, HEAD, OPTIMIZER, LOOP, END)
    seen = examine_script(file, steps)
    assert (seen.steps, seen.findings, seen.problem) == (steps, (), "")


def test_the_script_gets_its_arguments_and_computes_what_it_does_alone(folder, monkeypatch):
    file = written(folder, HEAD, "assert sys.argv[1:] == ['--steps', '3', '-v'], sys.argv\n", OPTIMIZER, LOOP, END)
    monkeypatch.setattr(sys, "argv", [str(file), "--steps", "3", "-v"])
    exec(compile(file.read_text(), str(file), "exec"), {"__name__": "__main__"})
    alone = Path("end.txt").read_text()
    assert status_of(file, "--steps", 1000, "--steps", 3, "-v") == 0
    assert Path("end.txt").read_text() == alone
    assert sys.argv == [str(file), "--steps", "3", "-v"]


def test_modules_beside_the_script_are_found(folder):
    (folder / "beside_the_script.py").write_text(HEAD)
    try:
        assert examine_script(written(folder, "from beside_the_script import *\n", OPTIMIZER, LOOP), 3).problem == ""
    finally:
        sys.modules.pop("beside_the_script", None)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (HEAD + OPTIMIZER + "1 / 0\n", "ZeroDivisionError: division by zero (line 8)"),
        (HEAD + "sys.exit('no data')\n", "ended itself with 'no data'"),
        (HEAD, "calls neither sparsify nor S2SAM or SAM"),
        ("def (", "SyntaxError"),
    ],
    ids=["error", "exit", "plain", "syntax"],
)
def test_a_script_that_cannot_be_looked_at_is_one_line_and_status_two(folder, capsys, script, told):
    assert status_of(written(folder, script)) == 2
    said = capsys.readouterr().err
    assert said.startswith("flatsparse: error: ")
    assert said.count("\n") == 1
    assert told in said


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["absent.py"], "no file 'absent.py'"),
        (["own.py", "--steps", "0"], "steps 0"),
        (["--steps", "many", "own.py"], "--steps"),
        ([], "script"),
    ],
    ids=str,
)
def test_bad_arguments_are_one_line_and_status_two(folder, capsys, arguments, told):
    written(folder, HEAD)
    assert status_of(*arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert told in said.lower()


def test_findings_before_an_error_are_shown(folder, capsys):
    file = written(folder, HEAD, OPTIMIZER, LOOP.replace("optimizer.zero_grad()", "assert step < 5"))
    assert status_of(file) == 2
    said = capsys.readouterr()
    assert "gradient-carried-over" in said.out
    assert "AssertionError" in said.err


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("doctor own.py", "doctor own.py --"),
        ("doctor own.py --steps=9 -x", "doctor --steps=9 own.py -- -x"),
        ("doctor --steps 9 own.py --steps 3", "doctor --steps 9 own.py -- --steps 3"),
        ("doctor own.py -- --steps 3", "doctor own.py -- --steps 3"),
        ("doctor --help", "doctor --help"),
        ("train own.py --steps 3", "train own.py --steps 3"),
    ],
)
def test_what_stands_behind_the_script_is_its_own(given, wanted):
    assert _separated(given.split()) == wanted.split()
