"""How Sphinx builds the site from these pages: `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "extensions"), str(HERE.parent / "src")]

import flatsparse  # noqa: E402

project = "flatsparse"
author = "the flatsparse authors"
release = version = flatsparse.__version__
html_title = f"flatsparse {release}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "api", "contents", "docstrings", "notebooks"]
exclude_patterns = ["extensions"]

# The pages are written for GitHub too: the anchors of headings are made as it makes them.
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
nitpicky = True
nitpick_ignore_regex = [
    # Other packages: their inventories would have to be fetched, and the site is built without a network.
    ("py:.*", r"(?!flatsparse\b).*"),
    # Ours that signatures name and that have no page.
    ("py:class", r"flatsparse\.(acceleration|common|experiments|models)\..*"),
    ("py:class", r"flatsparse\.sparse\.(grown_weights\.GrownWeights|packing\.Packing|frozen\.FrozenOutside)"),
]

html_theme = "furo"
html_copy_source = False
html_show_copyright = False
html_theme_options = {
    "source_repository": "https://github.com/flatsparse/flatsparse/",
    "source_branch": "main",
    "source_directory": "docs/",
}
