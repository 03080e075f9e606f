"""Where the laboratory's pictures get their names and their files."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from flatsparse.common.files import write_atomic


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
    write_atomic(file, stream.getvalue())


def svg(figure: Figure) -> str:
    """A picture as SVG to put into a page; equal pictures are equal texts."""
    stream = io.StringIO()
    with rc_context({"svg.hashsalt": "flatsparse"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    drawing = stream.getvalue()
    return drawing[drawing.index("<svg") :]
