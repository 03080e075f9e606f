"""The console of all commands, which prints texts as they are, whatever names of files and folders they hold."""

from __future__ import annotations

from typing import Any

from rich import console


class Console(console.Console):
    """A terminal, or a file in its place, on which brackets are no markup and ``:words:`` no pictures; styles are given apart."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError, with which the command line knows how to end."""
        raise BrokenPipeError
