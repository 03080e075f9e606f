"""The site is built without a warning, and its parts do what they say."""

import importlib
import json
import re
import subprocess
import sys

import pytest

from .blocks import PAGES, ROOT

for name in ("sphinx", "myst_parser", "furo"):
    pytest.importorskip(name, reason="the site needs pip install 'flatsparse[docs]'")
pytestmark = pytest.mark.slow
DOCS = ROOT / "docs"
NAMES = ("contents", "docstrings", "notebooks", "api")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, with notebooks whose cells were not run: tests/docs/test_code_blocks.py does that."""
    folder = tmp_path_factory.mktemp("site")
    options = ["-m", "sphinx", "-q", "-W", "--keep-going", "-D", "notebooks_run=0", "-d"]
    command = [sys.executable, *options, folder / "read", DOCS, folder / "html"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def parts():
    """The extensions of ours that make the site."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS / "extensions"))
        yield {name: importlib.import_module(name) for name in NAMES}
        for name in NAMES:
            del sys.modules[name]


def test_every_page_is_in_the_sidebar(site):
    sidebar = (site / "index.html").read_text(encoding="utf-8").split('class="sidebar-tree"')[1].split("</aside>")[0]
    pages = {name.removeprefix("docs/").removesuffix(".md") for name in PAGES if name.startswith("docs/")} - {"index"}
    assert all(f'href="{page}.html"' in sidebar for page in pages)


def documented(site):
    """The names in the reference."""
    from sphinx.util.inventory import InventoryFile

    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    return {item for kind, items in inventory.data.items() if kind.startswith("py:") for item in items}


def test_the_reference_has_every_name_of_ours_that_a_page_mentions(site):
    names = {
        name
        for page in PAGES.values()
        for name in re.findall(r"`(flatsparse(?:\.[A-Za-z_]\w*)+)[`(]", page.read_text(encoding="utf-8"))
    }
    assert names
    assert names - documented(site) == set()


def test_the_reference_has_every_public_name(site):
    import flatsparse as fs

    public = {f"flatsparse.{name}" for name in fs.__all__}
    assert public <= documented(site)


def test_a_notebook_has_the_cells_of_its_page(site):
    page = PAGES["docs/notebooks/own-loop.md"].read_text(encoding="utf-8")
    notebook = json.loads((site / "notebooks/own-loop.ipynb").read_text(encoding="utf-8"))
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code == [
        block.strip("\n") for block in re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    ]
    assert "download>" in (site / "notebooks/own-loop.html").read_text(encoding="utf-8")


def test_a_cell_that_prints_has_its_output_below_and_in_the_notebook(parts):
    notebooks = parts["notebooks"]
    page = notebooks.cells("# A page\n\n```python\nx = 2\n```\n\nThen\n\n```python\nprint(x)\n```\n")
    outputs = notebooks.printed(page, "page.md")
    assert outputs == ["", "", "", "2"]
    assert notebooks.as_page(page, outputs, "page.ipynb").endswith("```{code-block} text\n:class: printed\n\n2\n```")
    cells = json.loads(notebooks.as_notebook(page, outputs, "notebooks/page"))["cells"]
    assert [cell["cell_type"] for cell in cells] == ["markdown", "code", "markdown", "code"]
    assert cells[-1]["outputs"][0]["text"] == "2\n"


def test_a_cell_that_fails_ends_the_build(parts):
    with pytest.raises(ZeroDivisionError):
        parts["notebooks"].printed([("code", "1 / 0")], "page.md")


def test_links_that_leave_the_docs_lead_to_github(parts):
    linked = parts["contents"].with_outside_links
    there = parts["contents"].REPOSITORY
    assert (
        linked("[a](../LICENSE) [b](x.md#y) [c](https://z)", "page")
        == f"[a]({there}/LICENSE) [b](x.md#y) [c](https://z)"
    )
    assert linked("[a](../data.md#b)", "notebooks/page") == "[a](../data.md#b)"
    assert linked("[a](../data.md#b)", "notebooks/page", inside=True) == f"[a]({there}/docs/data.md#b)"


def test_lists_of_links_become_the_sidebar(parts):
    items, row = "- [A](a.md): b [c](d.md)\n- [E](e/README.md)\n", "| [`x`](x.md) | y |\n"
    text = f"# T\n\n## First\n\n{items}\n## None\n\nText\n\n## Last\n\n{row}"
    first, last = parts["contents"].toctrees(text)
    assert first.splitlines() == ["```{toctree}", ":hidden:", ":caption: First", "", "A <a>", "E <e/README>", "```"]
    assert "x <x>" in last


def test_sections_of_a_docstring_become_fields(parts):
    docstring = """Return masks.

Args:
    a, b: it is
        long.
    c: short, with: colons.

Returns: bool
    tensors.
Raises: InputError when
it is wrong.

>>> x
"""
    assert [line for line in parts["docstrings"].converted(docstring.splitlines()) if line] == [
        *("Return masks.", ":Arguments:", "   ``a``, ``b``", "      it is", "      long."),
        *("   ``c``", "      short, with: colons.", ":Returns: bool tensors."),
        *(":Raises: :py:class:`~flatsparse.InputError` when it is wrong.", ">>> x"),
    ]
