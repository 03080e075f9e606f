"""Texts as they are, on terminals and in pictures, whatever names of files and folders they hold."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich import console

from flatsparse.storage import write_whole


class Console(console.Console):
    """A terminal, or what stands in for it, on which brackets are no markup and ``:words:`` no pictures; styles are told.

    Every console of the laboratory is one.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def on_broken_pipe(self) -> None:
        """Leave it to the command line, which knows how to end."""
        raise BrokenPipeError


def caption(text: str) -> str:
    """A text for matplotlib, which takes what is between dollars for a formula, and a leading underscore to hide a label.

    >>> print(caption("_$x$"))
     _\\$x\\$
    """
    shown = text.encode(errors="replace").decode().replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def save(figure: Figure, file: Path) -> None:
    """Write a picture, whole. Raises InputError when it cannot be written."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=160)
    write_whole(file, stream.getvalue())
