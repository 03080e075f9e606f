"""Names that mean something to a page, a picture, a terminal, a shell or a file system, at all places that show a name."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from hypothesis import strategies as st

from flatsparse.experiments import plotting

from .calling import Kept
from .command_lines import NAMES
from .reading import check_same_form, check_terminal, check_words
from .showing import PLACES

PLAIN = "name"
OFTEN = {
    "files": 20,
    "terminal": 20,
    "layers": 15,
    "data": 8,
    "evaluation": 8,
    "script": 1,
    "changes": 1,
    "run": 1,
    "tables": 1,
}
CHOICES = [place for place, times in OFTEN.items() for _ in range(times)]
PIECES = [
    *("<script>", "</script>", "<!--", "-->", "]]>", "&lt;", '"', "'", "`", "onload=", "<img src=x onerror=alert(1)>"),
    *("{{ 3 }}", "{% if %}", "$", "$\\frac{", "_", "^", "{", "}", "\\", "%", "#", "|", "*", "[b]", "[/]", ":smile:"),
    *("\n", "\r", "\t", "\x1b[2J", "\x9b31m", "\x07", "; rm -rf x", "$(x)", "&& x", " ", "ا", "שלום", "漢字", "👍🏽"),
    *("\u200b", "\u202e", "\u2066", "\u2028", "\ufeff", "\udc80", "\x00", "a" * 90),
]
HOSTILE = st.one_of(NAMES, st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join))


@st.composite
def hostile_names(draw: st.DrawFn) -> tuple[str, str, bool]:
    """A place, a name and whether it is drawn in pictures too."""
    return draw(st.sampled_from(CHOICES)), draw(HOSTILE), not draw(st.integers(0, 24))


@functools.cache
def _plainly(place: str) -> str:
    with without_pictures():
        return PLACES[place](PLAIN).page


@contextlib.contextmanager
def without_pictures() -> Iterator[None]:
    """A context in which pages have empty pictures."""
    with mock.patch.object(plotting, "svg", return_value="<svg></svg>"):
        yield


def check(case: tuple[str, str, bool], files: Kept) -> str:
    """Show a name at a place, and read what is shown. Returns the place."""
    place, name, drawn = case
    with files.watched(), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph|.*missing from font|Matplotlib currently|No artists|constrained_layout not applied"
        )
        with contextlib.nullcontext() if drawn else without_pictures():
            shown = PLACES[place](name)
        check_terminal(shown.printed)
        if shown.page:
            page = check_same_form(shown.page, _plainly(place))
            if place in ("run", "evaluation", "changes"):
                word = name if place == "run" else str(Path("runs", name))
                check_words(page.commands, _as_read(word))
        if drawn:
            for picture in shown.pictures:
                plotting.save(picture(), Path("named.png"))
                plotting.svg(picture())
    return place


def _as_read(text: str) -> str:
    """Return a text as a page has it, and as its readers take the ends of its lines."""
    return text.encode(errors="replace").decode().replace("\r\n", "\n").replace("\r", "\n")
