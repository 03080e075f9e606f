"""The report of a store: its numbers are the tables', its page needs no network, and works by finger and by key."""

import html.parser
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import tyro
from PIL import Image
from rich.console import Console

from flatsparse.cli import main
from flatsparse.common.errors import InputError
from flatsparse.common.json_files import read_json, read_json_lines, with_checksum, write_json
from flatsparse.common.tensor_files import load_tensors
from flatsparse.experiments.metric import Metric
from flatsparse.experiments.recipes.recipe import Cell, Measured, Published, Reading, Recipe, both
from flatsparse.experiments.report import figures, tables
from flatsparse.experiments.report.cells import point
from flatsparse.experiments.report.interval_mark import interval_mark, reach
from flatsparse.experiments.report.store import MOST_POINTS, records, run, thinned
from flatsparse.experiments.report.text import print_record
from flatsparse.experiments.reproduce.run import Choice, run_recipe
from flatsparse.experiments.run.config import RunConfig, as_json, change
from flatsparse.experiments.run.resolve import resolve
from tests.cli.test_cli import fails

from .browser import MISSING, Browser
from .test_page import Outline

SMALL = RunConfig.of(method="set", train_size=40, validation_size=20, batch_size=10, epochs=3)
ODD = "<i>R</i> & </script>"


def cells(scale):
    return (
        *both("SET", "90%", SMALL, Published(61.25, 0.5, source="here & there"), Published(62.75)),
        *both("SET", "80%", change(SMALL, sparsity=0.8), Published(63.0)),
        *both(ODD, "90%", change(SMALL, mask_perturbation=False)),
        Cell("SET", "90%", change(SMALL, sharpness="random"), control="random direction"),
        Cell("SET", "gone", SMALL, Published(77.77), needs="a GPU"),
        Cell("SET", "wild", change(SMALL, lr=1e30)),
    )


def surface(store):
    """A ``landscape.json`` of one run of the store."""
    folder = next((store / "runs").glob("*-s2sam-*"))
    losses = [[2.0, 3.0, 40.0], [1.0, 0.5, None], [2.0, 2.0, 2.0]]
    told = {"run": str(folder), "name": "x", "grid": [-1, 0, 1], "losses": losses, "ra": {"value": 0.4321}, "also": {}}
    (store / "around").mkdir()
    write_json(store / "around" / "landscape.json", {"settings": {"kinds": ["live"], "clip": 10.0}, "runs": [told]})
    return folder.name


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = tmp_path_factory.mktemp("report") / "store"
    choice, quiet = Choice(seeds=2, jobs=1, device="cpu"), Console(quiet=True)
    run_recipe(
        Recipe("table1", f"Title {ODD}", "Ji et al., Table 1", cells, notes=("a stand-in",)), choice, store, quiet
    )
    readings = [Reading("speed", "x", "none", (5.0, 6.5)), Reading("speed", "x", "s2sam", (4.5, 7.5))]
    rounds = Recipe(
        "mine", "Rounds", "ours", metric=Metric("s", "lower"), measure=lambda runs, work: Measured(readings=readings)
    )
    run_recipe(rounds, choice, store, quiet)
    return store


@pytest.fixture(scope="module")
def written(store, tmp_path_factory):
    """The page with its tables; the store has a surface of one run."""
    name = surface(store)
    file = tables.write(records(store), store, tmp_path_factory.mktemp("written") / "new" / "report.html")
    return file, name


class Tables(html.parser.HTMLParser):
    """The tables of a page: of each the texts of its cells, row by row, and the numbers they are sorted by."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.cell = [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.cell = True
            self.tables[-1][-1].append(["", dict(attributes).get("data-value")])

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.cell = False

    def handle_data(self, text):
        if self.cell:
            self.tables[-1][-1][-1][0] += text


def data(file):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', file.read_text())[1])


def test_the_page_is_whole_and_asks_nothing_of_the_network(written):
    outline = Outline(written[0].read_text())
    assert outline.open == []
    assert [place for place in outline.asked if not place.startswith("data:image/png")] == []
    assert not re.search(r"https?://(?!www\.w3\.org/(2000/svg|1999/xlink))", written[0].read_text())


def test_every_number_in_a_table_is_of_its_record_and_none_is_left_out(written, store):
    shown = Tables(written[0].read_text()).tables
    for table, name, source in zip(shown, ("table1", "mine"), ("unknown", "none"), strict=True):
        record = read_json(store / f"{name}-smoke.json")
        heads = [text for text, _ in table[0]]
        assert len(table) == 1 + len(record["rows"])
        for row, line in zip(record["rows"], table[1:], strict=True):
            cells = dict(zip(heads, line, strict=True))
            spread = "" if row["std"] is None else f" ± {row['std']:.2f}"
            nothing = "failed" if row["failures"] else "not run"
            assert cells["measured"][0] == (f"{row['mean']:.2f}{spread}" if row["values"] else nothing)
            assert cells["n"][0] == str(len(row["values"]))
            p, d = row["published"], row["difference"]
            unknown = "none" if row["control"] else source
            assert cells["published"][0] == (f"{p['value']:.2f}" + (" ± 0.50" if p["std"] else "") if p else unknown)
            if d:
                low, high = d["interval95"]
                assert cells["difference"][0] == f"{d['mean']:+.2f} [{low:+.2f}, {high:+.2f}]"
                assert cells["its published"][0] == (f"{d['published']:+.2f}" if d["published"] else unknown)
            shared = row["same_runs"] and f"same runs as {row['same_runs']}"
            assert cells["verdict"][0] == (", ".join(filter(None, (row["verdict"], shared))) or "–")
            assert [cells[k][1] for k in ("measured", "difference")] == [
                v and repr(v) for v in (row["mean"], d and d["mean"])
            ]
            if row["also"]:
                assert cells["FLOPs"][0] == f"{row['also']['flops_train']:.3f}"
    assert any(row["verdict"] == "within noise" for row in read_json(store / "table1-smoke.json")["rows"])


def test_cells_open_what_the_runs_left_behind_with_commands_that_repeat_them(written, store):
    file, measured = written
    told, rows = data(file), read_json(store / "table1-smoke.json")["rows"]
    for cell, row in zip(told["cells"], rows, strict=False):  # those of the other table follow
        runs = [told["runs"][n] for n in cell["runs"]]
        assert [found["folder"] for found in runs] == [Path(folder).name for folder in row["folders"]]
        assert cell["values"] == [[f"seed {s}", f"{v:.2f}"] for s, v in zip(row["seeds"], row["values"], strict=True)]
        facts = dict(cell["facts"])
        assert ("here & there" in facts["published"]) == bool(row["published"] and row["published"]["source"])
        assert facts.get("needs") == row["needs"]
        assert ("failed" in facts) == bool(row["failures"])
        assert shlex.split(cell["command"])[:7] == [
            "flatsparse",
            "reproduce",
            "table1",
            "--scale",
            "smoke",
            "--only",
            f"{row['row']} {row['column']}",
        ]
    assert len(told["runs"]) == len({found["folder"] for found in told["runs"]}) == 12  # ODD's plain runs are SET's
    for found in told["runs"]:
        lines = read_json_lines(store / "runs" / found["folder"] / "metrics.jsonl")
        assert found["epochs"] == [1, 2, 3]
        assert found["curves"]["train_loss"] == pytest.approx([line["train_loss"] for line in lines], rel=1e-3)
        assert found["curves"]["exploration"] == pytest.approx([100 * line["exploration"] for line in lines], rel=1e-3)
        threads, *words = shlex.split(found["command"])
        config = read_json(store / "runs" / found["folder"] / "config.json")
        assert threads == f"OMP_NUM_THREADS={config['machine']['threads']}"
        assert words[:2] == ["flatsparse", "train"]
        again = resolve(
            tyro.cli(RunConfig, args=words[2:], config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes))
        )
        assert json.loads(json.dumps(as_json(again))) == config["settings"]
        assert found["settings"]["epochs"] == "3"
    assert list(told["surfaces"]) == [measured]
    assert "0.5 (dark) to 10 (bright)" in told["surfaces"][measured]["text"]
    assert "Ra 0.432" in told["surfaces"][measured]["text"]
    assert told["cells"][-1]["values"] == [["round 0", "4.50"], ["round 1", "7.50"]]
    assert told["cells"][-1]["command"] is None  # of no recipe that the package knows


def test_a_command_on_the_page_comes_to_the_same_weights(written, store, tmp_path):
    commands = {found["folder"]: found["command"] for found in data(written[0])["runs"]}
    folder = next(name for name, told in commands.items() if "--no-mask-perturbation" in told and "s2sam" in told)
    main([*shlex.split(commands[folder])[2:], "--out", str(tmp_path)])
    before, again = (load_tensors(place / "model.safetensors")[0] for place in (store / "runs" / folder, tmp_path))
    assert before.keys() == again.keys()
    assert all(torch.equal(weight, again[name]) for name, weight in before.items())


def test_text_is_escaped_wherever_it_comes_from(written):
    text = written[0].read_text()
    assert "<i>" not in text
    assert text.count("</script>") == 2
    assert "&lt;i&gt;R&lt;/i&gt; &amp; &lt;/script&gt;" in text
    assert any(ODD in cell["title"] for cell in data(written[0])["cells"])


@pytest.mark.slow
def test_a_table_of_a_hundred_cells_stays_small(store, tmp_path):
    """Three seeds each, runs of 160 epochs, all different."""
    record = read_json(store / "table1-smoke.json")
    row = next(row for row in record["rows"] if row["verdict"])
    folder = tmp_path / "runs" / "long"
    shutil.copytree(store / row["folders"][0], folder)
    line = read_json_lines(folder / "metrics.jsonl")[-1]
    lines = [with_checksum({**line, "epoch": n, "train_loss": 1 / n, "churn": 0.123456 / n}) for n in range(1, 161)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for n in range(300):
        (tmp_path / "runs" / f"digits-digitnet-set0.9-s2sam-{n:016}").symlink_to(folder)
    names = [f"runs/digits-digitnet-set0.9-s2sam-{n:016}" for n in range(300)]
    record["rows"] = [{**row, "folders": names[3 * n : 3 * n + 3]} for n in range(100)]
    file = tables.write([record], tmp_path, tmp_path / "report.html")
    assert len(data(file)["runs"]) == 300
    assert max(len(found["epochs"]) for found in data(file)["runs"]) == MOST_POINTS
    assert data(file)["runs"][0]["epochs"][-1] == 160
    assert file.stat().st_size < 2_000_000


def test_the_terminal_tells_scale_seeds_unknowns_stand_ins_and_the_claim(store, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    main(["report", "--store", str(store), "--out", str(tmp_path / "all.html")])
    told = capsys.readouterr().out
    for words in (
        "smoke",
        "61.25 ± 0.50",
        "unknown",
        "a stand-in",
        "the claim of a cell: S²-SAM raises test accuracy",
        ODD,
    ):
        assert words in told
    assert re.search(r"plain +\d\d\.\d\d ± \d\.\d\d +2 +61\.25", told)
    assert "1 cells need a GPU" in told
    assert told.count("the claim of") == 1  # rounds claim nothing
    assert told.endswith(f"report: {tmp_path / 'all.html'}\n")
    main(["report", "--store", str(store), "--only", "mine", "--scale", "smoke", "--out", str(tmp_path / "all.html")])
    assert "61.25" not in capsys.readouterr().out
    assert "61.25" not in (tmp_path / "all.html").read_text()  # its own page may be written again


def test_what_cannot_be_told_is_one_line_and_writes_nothing(store, tmp_path, capsys):
    out = tmp_path / "report.html"
    shared = ("report", "--out", str(out), "--store")
    assert "make one with flatsparse reproduce table1 --out" in fails(capsys, *shared, str(tmp_path / "none"))
    told = fails(capsys, *shared, str(store), "--scale", "laptop")
    assert "only table1 (smoke), mine (smoke)" in told or "only mine (smoke), table1 (smoke)" in told
    assert "flatsparse reproduce table1 --scale laptop" in told
    assert "unknown table 'tabel1' (nearest: table1)" in fails(capsys, *shared, str(store), "--only", "tabel1")
    text = (store / "table1-smoke.json").read_text()
    for spoilt in (text[: len(text) // 2], text.replace("61.25", "71.25"), json.dumps(with_checksum({"rows": []}))):
        (tmp_path / "bad-smoke.json").write_text(spoilt)
        assert "bad-smoke.json" in fails(capsys, *shared, str(tmp_path))
    assert not out.exists()
    out.write_text("my own page")
    assert "is no report of tables" in fails(capsys, *shared, str(store))
    assert "cannot write to" in fails(capsys, "report", "--store", str(store), "--out", str(out / "in" / "a.html"))
    assert out.read_text() == "my own page"


def test_a_run_that_is_damaged_or_gone_says_so_in_its_cell(store, tmp_path):
    folder = store / read_json(store / "table1-smoke.json")["rows"][0]["folders"][0]
    shutil.copytree(folder, tmp_path / "copy")
    assert "problem" not in run(tmp_path / "copy")
    with (tmp_path / "copy" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4')
    assert "metrics.jsonl" in run(tmp_path / "copy")["problem"]
    assert "config.json" in run(tmp_path / "gone")["problem"]


def test_curves_are_thinned_from_end_to_end():
    for count in (1, MOST_POINTS, MOST_POINTS + 1, 1000):
        kept = thinned(range(count))
        assert (kept[0], kept[-1]) == (0, count - 1)
        assert len(set(kept)) == min(count, MOST_POINTS)


def test_an_interval_is_drawn_to_scale_and_says_where_it_goes_on():
    d = {"mean": 1.0, "interval95": [-0.5, 2.5], "pairs": 3, "published": None}
    mark = interval_mark(d, 2.0, comparable=True)
    assert mark.line == (-15.0, 60.0)  # a quarter of the way to the left; to the right it goes on
    assert mark.goes_on == (False, True)
    assert mark.mean == 30.0
    assert mark.published is None
    assert interval_mark({**d, "published": -2.0}, 2.0, comparable=True).published == -60.0
    assert interval_mark({**d, "published": -2.0}, 2.0, comparable=False).published is None
    single = interval_mark({**d, "interval95": [None, None], "pairs": 1}, 2.0, comparable=True)
    assert (single.line, single.goes_on) == (None, (False, False))
    assert reach([{"difference": {**d, "published": -4.0}}, {"difference": None}]) == 5.0
    assert reach([{"difference": None}]) == 1.0


@pytest.mark.parametrize(("better", "best"), [("higher", {0, 2}), ("lower", {0, 1})])
def test_the_best_at_each_cost_are_joined(better, best):
    points = [(0.1, 50.0), (0.2, 40.0), (0.4, 60.0)]
    row = {"row": "r", "column": "c", "sharpness": "none", "control": None, "std": None}
    rows = [{**row, "mean": value, "also": {"flops_train": cost}} for cost, value in points]
    record = {"better": better, "metric": "m", "rows": rows}
    assert [n for n, row in enumerate(rows) if "nothing beats" in point(record, row)] == sorted(best)
    (axis,) = figures.pareto(list(enumerate(rows))[::-1], better).axes
    line, *marks = axis.lines
    assert list(zip(*line.get_data(), strict=True)) == [points[n] for n in sorted(best)]
    assert [mark.get_gid() for mark in marks] == ["point-0", "point-1", "point-2"]  # by cost, as arrow keys go
    assert [(mark.get_xdata()[0], mark.get_ydata()[0]) for mark in marks] == points


# -- in a browser ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if MISSING:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


COLUMN = "[...document.querySelector('table.sortable').tBodies[0].rows].map(row => row.cells[3].textContent)"
HEAD = "document.querySelector('table.sortable').tHead.rows[0].cells[3]"


def test_headings_sort_by_key_and_by_click(browser, written, store):
    browser.open(written[0], 1200)
    rows = read_json(store / "table1-smoke.json")["rows"]
    means = sorted(row["mean"] for row in rows if row["mean"] is not None)
    first = browser.value(COLUMN)

    def shown():
        return [float(text.split()[0]) for text in browser.value(COLUMN)[: len(means)]]

    browser.value(f"{HEAD}.querySelector('button').focus()")
    browser.press("Enter")
    assert browser.value(f"{HEAD}.getAttribute('aria-sort')") == "ascending"
    assert shown() == [pytest.approx(mean, abs=0.005) for mean in means]
    assert {*browser.value(COLUMN)[len(means) :]} == {"not run", "failed"}
    browser.press("Enter")
    assert browser.value(f"{HEAD}.getAttribute('aria-sort')") == "descending"
    assert shown() == [pytest.approx(mean, abs=0.005) for mean in reversed(means)]
    assert {*browser.value(COLUMN)[len(means) :]} == {"not run", "failed"}
    browser.value(f"{HEAD}.querySelector('button').click()")
    assert browser.value(f"{HEAD}.getAttribute('aria-sort')") == "none"
    assert browser.value(COLUMN) == first
    assert browser.problems == []


def test_a_cell_opens_its_runs_and_closes_by_key(browser, written, store):
    browser.open(written[0], 1200)
    for number, row in enumerate(read_json(store / "table1-smoke.json")["rows"]):
        browser.value(f"document.querySelector('[data-cell=\"{number}\"]').focus()")
        browser.press("Enter")
        assert browser.value("document.querySelector('dialog').open")
        words = browser.value("document.querySelector('dialog').textContent")
        assert all(f"{value:.2f}" in words for value in row["values"])
        assert words.count("flatsparse train") == len(row["folders"])
        lines = browser.value(
            "document.querySelector('dialog figure polyline')?.getAttribute('points').split(' ').length"
        )
        assert lines == (3 if row["folders"] else None)  # epochs
        assert ("mask_perturbation" in words) == bool(row["folders"])
        assert (row["needs"] or "") in words
        browser.press("Escape")
        assert not browser.value("document.querySelector('dialog').open")
    told = data(written[0])
    place = next(n for n, found in enumerate(told["runs"]) if found["folder"] == written[1])
    number = next(n for n, cell in enumerate(told["cells"]) if place in cell["runs"])
    browser.value(f"document.querySelector('[data-cell=\"{number}\"]').click()")
    assert (
        browser.value("(i => i.decode().then(() => i.naturalWidth))(document.querySelector('dialog img.surface'))") == 3
    )
    assert browser.problems == []


def test_points_of_a_plot_are_reached_by_key(browser, written):
    browser.open(written[0], 1200)
    browser.value("document.querySelector('.plot .point').focus()")
    first = browser.value("document.querySelector('.message').textContent")
    browser.press("ArrowRight")
    second = browser.value("document.querySelector('.message').textContent")
    assert first != second
    assert "dense training's FLOPs" in second
    browser.press("Enter")
    title = browser.value("document.querySelector('dialog h3').textContent")
    assert second.startswith(title.removeprefix("table1, smoke: "))
    assert browser.problems == []


def test_a_phone_shows_all_without_scrolling_sideways_and_answers_a_finger(browser, written):
    browser.open(written[0], 390, mobile=True)
    wide = "[document.documentElement.scrollWidth, innerWidth]"
    assert browser.value(wide) == [390, 390]
    assert browser.value(f"{HEAD}.closest('.wide').scrollWidth > {HEAD}.closest('.wide').clientWidth")
    shown = "[...document.querySelectorAll('button, nav a')].filter(b => b.checkVisibility())"
    small = f"{shown}.map(b => b.getBoundingClientRect().height).filter(height => height < 44)"
    assert browser.value(small) == []
    browser.tap("document.querySelector('.plot .point')")
    below = browser.value("document.querySelector('.message').getBoundingClientRect().bottom")
    assert 0 < below <= 844  # in sight, however many plots there are
    assert "dense training's FLOPs" in browser.value("document.querySelector('.message').textContent")
    browser.tap("document.querySelector('.message button')")
    assert browser.value("document.querySelector('dialog').open")
    assert browser.value("(d => d.scrollWidth <= d.clientWidth)(document.querySelector('dialog'))")
    assert browser.value(wide) == [390, 390]
    browser.tap("document.querySelector('dialog .close')")
    assert not browser.value("document.querySelector('dialog').open")
    assert browser.problems == []


# -- stores that others may have made ---------------------------------------------------------------------------------


@pytest.fixture
def crafted(store, tmp_path):
    """A store with one table, and what writes it anew with a change and tells it."""
    shutil.copytree(store / "runs", tmp_path / "store" / "runs")
    record = read_json(store / "table1-smoke.json")

    def told(**change):
        write_json(tmp_path / "store" / "table1-smoke.json", {**record, **change})
        return tables.write(records(tmp_path / "store"), tmp_path / "store", tmp_path / "report.html").read_text()

    return told, record


def picture(file):
    Image.new("RGB", (8, 8), "red").save(file)
    return file


def test_no_picture_from_outside_the_store_gets_onto_the_page(crafted, tmp_path):
    told, _ = crafted
    secret = picture(tmp_path / "secret.png")
    (tmp_path / "store" / "link.png").symlink_to(secret)
    (tmp_path / "store" / "folder").symlink_to(tmp_path)
    picture(tmp_path / "store" / "mine.png")
    assert told(pictures=["mine.png"]).count("data:image/png") == 1
    for name in ("link.png", "folder/secret.png"):
        assert "data:image/png" not in told(pictures=[name])
    for name in (str(secret), "../secret.png", "runs/../../secret.png"):
        with pytest.raises(InputError, match=r"table1-smoke\.json' is damaged .*not in the folder"):
            told(pictures=[name])


def test_no_run_from_outside_the_store_gets_onto_the_page(crafted, tmp_path):
    told, record = crafted
    for folder in (str(tmp_path), "..", "runs/../.."):
        with pytest.raises(InputError, match="not in the folder"):
            told(rows=[{**record["rows"][0], "folders": [folder]}])


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_a_damaged_picture_is_told_of(crafted, tmp_path, content):
    (tmp_path / "store" / "mine.png").write_bytes(content)
    assert "The picture mine.png is damaged." in crafted[0](pictures=["mine.png"])


@pytest.mark.parametrize(
    ("word", "mean", "p", "better", "now"),
    [
        ("reproduces", 1.0, 0.01, "higher", "helps"),
        ("consistent with no effect", 1.0, 0.5, "higher", "within noise"),
        ("contradicts", 1.0, 0.01, "higher", "less than claimed"),
        ("contradicts", -0.1, 0.5, "higher", "less than claimed"),
        ("contradicts", -1.0, 0.01, "higher", "hurts"),
        ("contradicts", 1.0, 0.01, "lower", "hurts"),
    ],
)
def test_records_made_before_have_todays_verdicts(crafted, tmp_path, word, mean, p, better, now):
    told, record = crafted
    row = next(row for row in record["rows"] if row["verdict"] and row["difference"])
    told(rows=[{**row, "verdict": word, "difference": {**row["difference"], "mean": mean, "p_holm": p}}], better=better)
    ((found,),) = [record["rows"] for record in records(tmp_path / "store")]
    assert found["verdict"] == now


def places(value, place=()):
    """Every place in nested values."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value[:1]):
        yield (*place, key)
        if isinstance(inner, (dict, list)):
            yield from places(inner, (*place, key))


def test_a_record_with_anything_missing_or_of_another_kind_is_told_or_named_in_a_line(crafted, tmp_path):
    _, record = crafted
    record["rows"] = [next(row for row in record["rows"] if row["difference"] and row["published"])]
    file, quiet, refused = tmp_path / "store" / "table1-smoke.json", Console(quiet=True), 0
    for n, place in enumerate(places(record)):
        for wrong in ("missing", ["x", -1, None, [], {"a": 1}][n % 5]):
            spoilt = json.loads(json.dumps(record))
            inner = spoilt
            for key in place[:-1]:
                inner = inner[key]
            if wrong == "missing":
                del inner[place[-1]]
            else:
                inner[place[-1]] = wrong
            write_json(file, spoilt)
            said = None
            try:
                (found,) = records(tmp_path / "store")
            except InputError as problem:
                said, refused = str(problem), refused + 1
            else:
                print_record(found, quiet)
                tables.write([found], tmp_path / "store", tmp_path / "report.html")
            assert said is None or (f"'{file}' is damaged (" in said and "\n" not in said)
    assert refused > 60
