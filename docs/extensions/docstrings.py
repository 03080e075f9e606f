"""Turns the sections of our docstrings (`Args:`, `Attributes:`, `Returns:`, `Raises:`) into fields of reStructuredText.

Other than in Google's form, a section of one sentence stands on the line of its name, so that Sphinx's own reader would miss it.
"""

from __future__ import annotations

import re
from typing import Any

LISTS = {"Args": "Arguments", "Attributes": "Attributes"}
SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises):(?:$|\s+)(.*)")
ITEM = re.compile(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)*): (.*)")


def converted(lines: list[str]) -> list[str]:
    """The lines of a docstring, its indentation removed, with sections as a field list."""
    result, rest = [], list(lines)
    while rest:
        line = rest.pop(0)
        if not (match := SECTION.match(line)):
            result.append(line)
            continue
        name, first = match.groups()
        body = [first] if first else []
        while rest and _belongs(rest, name):
            body.append(rest.pop(0))
        if result and result[-1] and not result[-1].startswith((":", " ")):
            result.append("")  # a field list is a paragraph of its own
        result += items(name, body) if name in LISTS else sentence(name, body)
        if rest and rest[0] and not SECTION.match(rest[0]):
            result.append("")
    return result


def _belongs(rest: list[str], name: str) -> bool:
    """Whether the next line is of the section: indented, perhaps after an empty line, or the same sentence."""
    if rest[0].strip():
        return rest[0].startswith(" ") or (name not in LISTS and not SECTION.match(rest[0]))
    return any(line.strip() for line in rest) and next(line for line in rest if line.strip()).startswith(" ")


def sentence(name: str, body: list[str]) -> list[str]:
    """A section of prose. Exceptions of ours lead to their page."""
    text = " ".join(line.strip() for line in body if line.strip())
    if name == "Raises":
        text = re.sub(r"(?<![`\w])InputError\b", ":py:class:`~flatsparse.InputError`", text)
    return [f":{name}: {text}"]


def items(name: str, body: list[str]) -> list[str]:
    """A section of names and what they are."""
    indent = min((len(line) - len(line.lstrip()) for line in body if line.strip()), default=0)
    result = [f":{LISTS[name]}:", ""]
    for line in body:
        text = line[indent:]
        if match := ITEM.match(text):
            names = ", ".join(f"``{each}``" for each in match[1].split(", "))
            result += ["", f"   {names}", f"      {match[2]}"]
        elif text.strip():
            result.append(f"      {text.strip()}")
    return [*result, ""]


def process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = converted(lines)


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True}
