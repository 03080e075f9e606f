"""A reader of pages, terminals' lines and command lines, which says whether a name is more than text there."""

from __future__ import annotations

import html.parser
import json
import re
import shlex
from collections.abc import Iterable

from .calling import Fault

STYLES = re.compile(r"\x1b\[[0-9;]*m")  # that our own terminal writes
DRAWN = {
    "svg",
    "defs",
    "style",
    "g",
    "path",
    "use",
    "clippath",
    "rect",
    "circle",
    "metadata",
    "image",
    "ellipse",
}  # in pictures


class Page(html.parser.HTMLParser):
    """A page taken apart.

    Attributes:
        skeleton: its elements, each with the names of its attributes, but for what is in pictures.
        text: all that is shown or may be read aloud.
        commands: the texts of ``pre``.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.skeleton: list[tuple[str, ...]] = []
        self.texts: list[str] = []
        self.commands: list[str] = []
        self._open: list[str] = []
        self._json: str | None = None
        self.feed(text)
        self.close()
        if self._open:
            raise Fault(f"elements are not closed: {self._open}")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._begin(tag, attrs)
        if tag not in ("meta", "img", "input", "br", "link", "hr"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._begin(tag, attrs)

    def _begin(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        if bad := [
            name
            for name, value in attrs
            if name.startswith("on") or (value or "").lower().lstrip().startswith("javascript")
        ]:
            raise Fault(f"<{tag}> has {bad}")
        for name, value in attrs:
            if name in ("href", "src", "xlink:href") and not (value or "").startswith(("#", "data:image/png")):
                raise Fault(f"<{tag}> leads to {value!r}")
            if name in ("alt", "aria-label", "data-place", "title"):
                self.texts.append(value or "")
        if "svg" in self._open:
            if tag not in DRAWN:
                raise Fault(f"<{tag}> is in a picture")
        else:
            self.skeleton.append((tag,) if tag == "svg" else (tag, *sorted(names)))
        self._json = "" if tag == "script" and ("type", "application/json") in attrs else None
        if tag == "pre":
            self.commands.append("")

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            raise Fault(f"</{tag}> closes nothing")
        if tag == "script" and self._json is not None:
            self.texts.append(json.dumps(json.loads(self._json), ensure_ascii=False))
            self._json = None

    def handle_data(self, data: str) -> None:
        if self._json is not None:
            self._json += data
        elif self._open and self._open[-1] not in ("style", "script"):
            self.texts.append(data)
            if self._open[-1] == "pre":
                self.commands[-1] += data

    def handle_comment(self, data: str) -> None:
        if "svg" not in self._open:
            raise Fault(f"a comment: {data!r}")

    def handle_pi(self, data: str) -> None:
        raise Fault(f"an instruction: {data!r}")

    def unknown_decl(self, data: str) -> None:
        raise Fault(f"a declaration: {data!r}")


def check_same_form(page: str, plain: str) -> Page:
    """Return a page. Raises Fault where its elements are not those of the same page with plain names."""
    ours, theirs = Page(page), Page(plain)
    if ours.skeleton != theirs.skeleton:
        odd = [pair for pair in zip(ours.skeleton, theirs.skeleton, strict=False) if pair[0] != pair[1]][:1]
        raise Fault(f"a name made or took elements: {odd or (len(ours.skeleton), len(theirs.skeleton))}")
    return ours


def check_terminal(text: str) -> None:
    """Raise Fault for characters that a terminal obeys."""
    obeyed = {
        c
        for c in STYLES.sub("", text)
        if (c < " " and c not in "\t\n") or "\x7f" <= c <= "\x9f" or c in "\u2028\u2029\u202e\u2066"
    }
    if obeyed:
        raise Fault(f"a terminal would obey {obeyed!r} of {text[:300]!r}")


def check_words(commands: Iterable[str], name: str) -> None:
    """Raise Fault where a shell would not read a name as one word."""
    for command in commands:
        words = shlex.split(command)
        if not any(name in word for word in words):
            raise Fault(f"{name!r} is no word of {command!r}")
