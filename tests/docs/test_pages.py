import importlib
import json
import re
import sys
from pathlib import Path

import pytest

import flatsparse as fs
from flatsparse.cli import main
from flatsparse.common.errors import InputError
from flatsparse.sam.directions import DIRECTIONS
from tests.docs.blocks import commands, python

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def generators():
    """The modules that make pages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        modules = [importlib.import_module(name) for name in ("pages", "direction_pages")]
        yield modules
        for name in ("pages", "direction_pages", "page_text"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def pages(generators):
    return generators[0].pages()


def test_every_direction_has_its_page_and_none_is_out_of_date(generators):
    written = {file.name: file.read_text(encoding="utf-8") for file in (DOCS / "directions").glob("*.md")}
    assert set(written) == {"README.md", *(f"{name}.md" for name in DIRECTIONS)}
    assert written == generators[1].pages(), "run make docs"


def test_every_method_has_its_page_and_none_is_out_of_date(pages):
    written = {file.name: file.read_text(encoding="utf-8") for file in (DOCS / "methods").glob("*.md")}
    assert set(written) == {"README.md", *(f"{name}.md" for name in fs.METHODS)}
    assert written == pages, "run make docs"


@pytest.mark.parametrize("name", fs.METHODS)
def test_a_page_explains_every_option(pages, name):
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*) \|$", pages[f"{name}.md"], re.MULTILINE)
    assert [option for option, _, _ in rows] == list(fs.METHODS[name].__dataclass_fields__)
    assert all(text for _, _, text in rows)


@pytest.fixture
def followed(tmp_path, monkeypatch):
    """The steps of the page in an empty folder, with the file that it asks for written."""
    method, _ = python("docs/add-a-method.md")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("mine.py").write_text(method, encoding="utf-8")
    yield commands("docs/add-a-method.md", "flatsparse")
    sys.modules.pop("mine", None)


def test_the_page_on_adding_a_method_works_on_the_command_line(followed, capsys):
    layers, train, _ = followed
    for words in (layers, train):
        main(words[1:])
    assert "0.9500 of the chosen layers" in capsys.readouterr().out
    result = json.loads(Path("drawn/result.json").read_text())
    assert result["sparsity"]["prunable"] == pytest.approx(0.95, abs=1e-4)
    assert result["health"]["churn"] > 0
    assert result["flops"]["train"] > 3 * 300 * 2 * result["flops"]["inference"]  # its dense gradients are counted


@pytest.mark.slow
def test_the_page_on_adding_a_method_ends_with_a_comparison(followed):
    *_, compare = followed
    main(compare[1:])
    assert Path("drawn-or-not/report.html").is_file()


@pytest.mark.parametrize(
    ("text", "name", "told"),
    [
        ("class Mine: ...", "Mine", "dataclass with plan"),
        ("x = 1", "Mine", "no method 'Mine'"),
        ("import absent_module", "Mine", "ModuleNotFoundError"),
        ("def (", "Mine", "SyntaxError"),
    ],
)
def test_a_file_without_the_method_is_told_in_one_line(tmp_path, text, name, told):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(InputError, match=told) as caught:
        fs.methods.kind_of(f"{tmp_path / 'mine.py'}:{name}")
    assert "\n" not in str(caught.value)
