"""The code blocks of the README and the docs: the Python of a page, and the commands that it names.

Two comments, which a reader of the page does not see, stand before a block or between blocks:

- ``<!-- run`` … ``-->`` holds Python that the page's blocks need and a reader has anyway, such as a model;
- ``<!-- file NAME -->`` before a block says that it is the file NAME: it is written, not run.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FILES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY", "benchmarks/README", "examples/README")),
    *(ROOT / "docs").rglob("*.md"),
]
PAGES = {page.relative_to(ROOT).as_posix(): page for page in sorted(FILES)}

HIDDEN_OR_SHOWN = re.compile(
    r"<!-- run\n(?P<hidden>.*?)-->|(?:<!-- file (?P<file>\S+) -->\s*)?^ *```python\n(?P<shown>.*?)^ *```$",
    re.DOTALL | re.MULTILINE,
)
BLOCK = re.compile(r"^ *```(?P<language>\w*)\n(?P<text>.*?)^ *```$", re.DOTALL | re.MULTILINE)


def python(page: str) -> list[str]:
    """The Python blocks that a reader sees, in order."""
    found = (match["shown"] for match in HIDDEN_OR_SHOWN.finditer(PAGES[page].read_text(encoding="utf-8")))
    return [textwrap.dedent(block) for block in found if block is not None]


def run(page: str) -> dict[str, Any]:
    """Run the page's Python in order, in one namespace and in the current folder; return the names it leaves."""
    text, names = PAGES[page].read_text(encoding="utf-8"), {"__name__": "page"}
    for match in HIDDEN_OR_SHOWN.finditer(text):
        code = textwrap.dedent(match["shown"] if match["hidden"] is None else match["hidden"])
        if match["file"]:
            Path(match["file"]).write_text(code, encoding="utf-8")
            continue
        lines_above = text.count("\n", 0, match.start("shown" if match["hidden"] is None else "hidden"))
        exec(compile("\n" * lines_above + code, str(PAGES[page]), "exec"), names)
    return names


def commands(page: str, program: str) -> list[list[str]]:
    """The words of every line that calls the program, in blocks that are not Python and between backticks.

    Brackets around an option that may be left out are removed; what a page cuts short (…) is left out.
    """
    text = PAGES[page].read_text(encoding="utf-8")
    lines = [
        line
        for match in BLOCK.finditer(text)
        if match["language"] != "python"
        for line in match["text"].splitlines()
        if line.split(maxsplit=1)[:1] == [program]
    ]
    inline = re.findall(rf"(?<!`)`({program}\s[^`]+)`(?!`)", BLOCK.sub("", text))
    lines += [" ".join(line.split()) for line in inline if not re.search("…|COMMAND|--help", line)]
    whole = (line.replace("[--", "--").replace("] ", " ").removesuffix("]") for line in lines)
    return [shlex.split(line, comments=True) for line in whole]
