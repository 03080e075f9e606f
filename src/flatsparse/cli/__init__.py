"""The command line: ``main`` runs a command; each command has a file of its own."""

from flatsparse.cli.entry import main

__all__ = ["main"]
