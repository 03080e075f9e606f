"""Long work tells how far it is without a terminal too."""

import io
import time

import pytest
from rich.console import Console

from flatsparse.experiments import progress
from flatsparse.experiments.bench.suite import Bench, measure
from flatsparse.experiments.compare import Comparison, compare
from flatsparse.experiments.landscape import measure as landscape
from flatsparse.experiments.landscape.settings import Landscape
from flatsparse.experiments.run.config import RunConfig, Setting
from flatsparse.experiments.run.loop import train

SMALL = {"train_size": 40, "validation_size": 20, "batch_size": 10, "epochs": 1}


def until_told(console, lines):
    for _ in range(200):
        if lines in console.file.getvalue():
            return True
        time.sleep(0.01)
    return False


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.01)


def test_a_line_comes_while_one_piece_of_the_work_goes_on_and_none_after(often):
    console = Console(file=io.StringIO(), width=100)
    with progress.ProgressLines(console, "some [b]work[/b]", 8) as lines:
        lines.done = 2
        assert until_told(console, "some [b]work[/b]: 25% after 0 s\n")
    told = console.file.getvalue()
    time.sleep(0.05)
    assert console.file.getvalue() == told


def test_a_terminal_has_its_bar_and_no_lines(often):
    console = Console(file=io.StringIO(), force_terminal=True)
    with progress.ProgressLines(console, "work", 8):
        time.sleep(0.05)
    assert console.file.getvalue() == ""


def test_a_bar_shows_title_note_and_how_much_is_done():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with progress.Progress(console, "some [b]work[/b]", 8, done=1, note="1/4 runs") as bar:
        bar.advance()
        bar.update(title="other work", note="2/4 runs")
        bar.update(6)
        assert bar.done == 6
        bar.advance(2)
        assert bar.done == 8
    shown = console.file.getvalue()
    assert "other work" in shown
    assert "2/4 runs" in shown


def test_progress_without_a_terminal_is_lines_of_what_is_done(often):
    console = Console(file=io.StringIO(), width=100)
    with progress.Progress(console, "work", 8, done=1) as bar:
        bar.advance(3)
        assert until_told(console, "work: 50% after 0 s\n")
        bar.update(title="a part of it")
        bar.update(8)
        assert until_told(console, "work: 100% after 0 s\n")


def bench(tmp_path, console):
    measure(Bench("step", case=("resnet32",), quick=True, device="cpu").resolved(), console)
    return "bench step: "


def comparison(tmp_path, console):
    compare(Comparison(Setting.of(**SMALL), sharpness=("sam",), seeds=1, jobs=1), tmp_path / "out", console=console)
    return "comparing: "


def surface(tmp_path, console):
    train(RunConfig.of(**SMALL), tmp_path / "run")
    asked = Landscape((tmp_path / "run",), points=5, images=20, pairs=1, hessian_images=0, device="cpu", jobs=1)
    landscape.measure(asked, tmp_path / "out", console=console)
    return "measuring: "


@pytest.mark.parametrize("work", [bench, comparison, surface])
def test_what_takes_minutes_tells_how_far_it_is(often, tmp_path, work):
    console = Console(file=io.StringIO(), width=100)
    told = work(tmp_path, console)
    assert any(line.startswith(told) and "% after" in line for line in console.file.getvalue().splitlines())
