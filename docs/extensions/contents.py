"""The sidebar, from the lists of links that the pages have anyway; and links that leave `docs/`, which lead to GitHub."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import api

REPOSITORY = "https://github.com/flatsparse/flatsparse/blob/main"
LISTS = ("index", "methods/README", "directions/README")  # pages that list others
ENTRY = re.compile(r"^(?:- |\| )\[`?([^\]`]+)`?\]\(([^)#\s]+)\)", re.MULTILINE)  # the first link of an item or a row
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)([^)]*)\)")  # to a file here


def toctrees(text: str) -> list[str]:
    """Directives that put the pages that a text lists, section by section, into the sidebar."""
    sections = re.split(r"^## ", text, flags=re.MULTILINE)
    return [
        toctree("" if number == 0 else section.splitlines()[0], ENTRY.findall(section))
        for number, section in enumerate(sections)
        if ENTRY.search(section)
    ]


def toctree(caption: str, entries: list[tuple[str, str]]) -> str:
    lines = [f"{title} <{target.removesuffix('.md')}>" for title, target in entries]
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}" if caption else "", "", *lines, "```"])


def with_outside_links(text: str, page: str, inside: bool = False) -> str:
    """The text of a page with its links to files that are not of the site leading to GitHub; or, with `inside`, all of them."""

    def outside(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), match[1]))
        return match[0] if path.startswith("docs/") and not inside else f"]({REPOSITORY}/{path}{match[2]})"

    return LINK.sub(outside, text)


def read(app: Any, page: str, source: list[str]) -> None:
    if Path(app.env.doc2path(page)).suffix != ".md":
        return
    source[0] = with_outside_links(source[0], page)
    if page in LISTS:
        parts = [source[0], *toctrees(source[0])]
        if page == "index":
            parts.append(toctree("Reference", [(title, f"api/{name}") for name, (title, _) in api.PAGES.items()]))
        source[0] = "\n\n".join(parts) + "\n"


def setup(app: Any) -> dict[str, bool]:
    app.connect("source-read", read)
    return {"parallel_read_safe": True}
