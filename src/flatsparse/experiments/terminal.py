"""Where the laboratory prints: texts as they are, whatever names of files and folders they hold."""

from __future__ import annotations

from typing import Any

from rich import console


class Console(console.Console):
    """A terminal, or what stands in for it, on which brackets are no markup and ``:words:`` no pictures; styles are told.

    Every console of the laboratory is one.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def on_broken_pipe(self) -> None:
        """Leave it to the command line, which knows how to end."""
        raise BrokenPipeError
