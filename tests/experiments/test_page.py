import ast
import dataclasses
import html.parser
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

import flatsparse
from flatsparse.experiments.compare import Comparison, compare
from flatsparse.experiments.report import columns, figures, pages
from flatsparse.experiments.report.flags import flags
from flatsparse.experiments.run.config import RunConfig, Setting, change
from flatsparse.experiments.run.loop import train
from flatsparse.experiments.run.resolve import resolve

PACKAGE = Path(flatsparse.__file__).parent
SMALL = Comparison(
    Setting.of(train_size=64, validation_size=50, batch_size=32, epochs=2),
    seeds=2, label_noise=(0.0, 0.2), tune=True, rho_grid=(0.1, 0.5),
    tune_seeds=1, jobs=1, sharpness=("s2sam", "random"),
)  # fmt: skip


class Outline(html.parser.HTMLParser):
    """What is opened and not closed, what is asked of the network, and the words."""

    VOID = frozenset({"meta", "br", "img", "link", "path", "use"})

    def __init__(self, text):
        super().__init__()
        self.open, self.asked, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.asked += [v for k, v in attributes if k in ("src", "href", "xlink:href") and not v.startswith("#")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def comparison_report(tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "out"
    tables = compare(SMALL, out, console=Console(quiet=True))
    return pages.write_comparison(tables, SMALL.resolved(), out), tables


@pytest.fixture(scope="module")
def run_report(tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "run"
    run = resolve(RunConfig.of(train_size=64, validation_size=50, batch_size=32, epochs=2, sharpness="s2sam"))
    return pages.write_run(run, train(run, out), out)


@pytest.mark.parametrize("which", ["comparison_report", "run_report"])
def test_a_report_is_whole_and_asks_nothing_of_the_network(which, request):
    file = request.getfixturevalue(which)
    outline = Outline((file if which == "run_report" else file[0]).read_text())
    assert outline.open == []
    assert outline.asked == []


def test_a_comparison_tells_every_number_it_rests_on(comparison_report):
    file, tables = comparison_report
    words = " ".join(Outline(file.read_text()).words)
    for table in tables:
        for row in table.rows:
            assert all(f"{accuracy:.2f}" in words for accuracy in row.accuracies)
            assert f"{row.mean:.2f} ± {row.std:.2f}" in words
            if row.difference:
                assert f"{row.difference.mean:+.2f}" in words
    assert "within a Euclidean ball" in words
    assert "3.weight" in words


def test_the_command_in_a_report_repeats_the_comparison():
    import tyro

    setting = change(SMALL.setting, include=("3*", "[56]"), channels_last=True, mask_perturbation=False)
    asked = dataclasses.replace(SMALL, setting=setting, rhos={"s2sam": 0.2})
    told = flags(asked)
    again = tyro.cli(
        Comparison, args=shlex.split(told), config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)
    )
    assert again.resolved() == asked.resolved()
    assert "'3*'" in told  # as a shell must be given it


def test_no_html_stands_in_a_python_string():
    html = re.compile(r"</[a-z]+>|<(div|table|t[rdh]|svg|p|h[1-6]|span|script|style|ul|li|figure|body)\b")
    for file in PACKAGE.rglob("*.py"):
        texts = [n.value for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Constant)]
        assert not [text for text in texts if isinstance(text, str) and html.search(text)], file


@pytest.mark.skipif(not shutil.which("node"), reason="node is not installed")
@pytest.mark.parametrize(
    "script", sorted((PACKAGE / "experiments/report/assets").glob("*.js")), ids=lambda file: file.name
)
def test_scripts_are_javascript(script):
    subprocess.run(["node", "--check", str(script)], check=True)


def test_names_are_escaped(tmp_path):
    out = tmp_path / "<b>run</b> & co"
    run = resolve(RunConfig.of(train_size=40, validation_size=20, batch_size=20, epochs=1))
    text = pages.write_run(run, train(run, out), out).read_text()
    assert "<b>" not in text
    assert "&lt;b&gt;run&lt;/b&gt; &amp; co" in text


def test_a_sharpness_without_an_entry_has_a_name_and_a_color_and_every_column_its_text(comparison_report):
    _, tables = comparison_report
    row = dataclasses.replace(tables[0].row("s2sam"), sharpness="previous_two")
    table = dataclasses.replace(tables[0], rows=(tables[0].row("none"), row))
    (axis,) = figures.differences([table]).axes
    assert axis.get_yticklabels()[0].get_text().startswith("previous two, ρ = ")
    assert all(column.text(row) for column in columns.COLUMNS)
    assert columns.columns(columns.ACCURACY, columns.COLUMNS)[0].text(row) == "previous two"


@pytest.mark.skipif(not shutil.which("chromium"), reason="Chromium is not installed (Debian: apt-get install chromium)")
@pytest.mark.parametrize("width", [390, 1000])
def test_chromium_shows_the_report_without_an_error_and_within_a_phone(comparison_report, tmp_path, width):
    file, _ = comparison_report
    probe = tmp_path / "probe.html"
    script = (
        "<script>document.title = 'wide ' + document.documentElement.scrollWidth + ' of ' + innerWidth</script></body>"
    )
    probe.write_text(file.read_text().replace("</body>", script))
    options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    options += (
        f" --disable-component-update --disable-sync --enable-logging=stderr --user-data-dir={tmp_path / 'profile'}"
    )
    command = ["chromium", *options.split(), f"--window-size={width},3000"]
    shown = subprocess.run([*command, "--dump-dom", str(probe)], capture_output=True, text=True, timeout=60, check=True)
    assert not re.search(r"CONSOLE.*(error|uncaught)", shown.stderr, re.IGNORECASE)
    wide, inner = map(int, re.search(r"<title>wide (\d+) of (\d+)</title>", shown.stdout).groups())
    assert wide <= inner
    picture = tmp_path / "shot.png"
    subprocess.run([*command, f"--screenshot={picture}", str(file)], capture_output=True, timeout=60, check=True)
    import matplotlib.image

    pixels = matplotlib.image.imread(picture)
    assert pixels.std() > 0.05  # something is drawn
