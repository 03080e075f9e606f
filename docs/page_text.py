"""Markdown for the pages that are made from the library: tables, and text of docstrings."""

from __future__ import annotations

import re


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def unwrapped(text: str) -> str:
    """Docstring text as Markdown, a line a paragraph."""
    paragraphs = re.split(r"\n\s*\n", text.strip())
    return "\n\n".join(re.sub(r"\s+", " ", p).replace("``", "`") for p in paragraphs)
