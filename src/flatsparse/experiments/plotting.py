"""Pictures by matplotlib: captions, axes, and how they are written."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

from flatsparse.common.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE = "#333333"  # the color of lines that stand for no sharpness


def caption(text: str) -> str:
    """The text as matplotlib must get it, which takes dollars for a formula and a leading underscore to hide a label.

    >>> print(caption("_$x$"))
     _\\$x\\$
    """
    shown = text.encode(errors="replace").decode().replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def plain(axis: Axes, along: str = "both") -> None:
    """Give axes two sides instead of four, and a light grid along x, y or both."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis=along, alpha=0.3)  # type: ignore[arg-type]


def save(figure: Figure, file: Path) -> None:
    """Write a picture as PNG, whole. Raises InputError when it cannot be written."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=160)
    write_atomic(file, stream.getvalue())


def svg(figure: Figure) -> str:
    """The picture as SVG for a page; equal pictures are equal texts."""
    from matplotlib import rc_context

    stream = io.StringIO()
    with rc_context({"svg.hashsalt": "flatsparse"}):
        figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return re.sub(r"^(<[?!][^>]*>\s*)*", "", stream.getvalue())  # without XML's declarations
