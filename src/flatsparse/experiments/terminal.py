"""The console of all commands, which prints texts as they are, whatever names of files and folders they hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich import console
from rich.segment import Segment
from rich.text import Text

from flatsparse.common.errors import harmless


class Console(console.Console):
    """A terminal, or a file in its place, on which brackets are no markup and ``:words:`` no pictures; styles are given apart.

    A character that a terminal would obey, such as the one that begins a change of color, is shown as its escape.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text as it is laid out, with escapes."""
        return super().render_str(harmless(text), **options)

    def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
        """Yield the segments of what is shown, with escapes also in what came as ``Text``."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=harmless(segment.text))

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError, with which the command line knows how to end."""
        raise BrokenPipeError
