"""The command line that gives some settings."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

from flatsparse.experiments.run.config import unasked
from flatsparse.experiments.run.resolve import OWN


def flags(settings: Any) -> str:
    """The flags that give these settings, as a shell takes them; what is at its default has none."""
    words: list[str] = []
    for field in dataclasses.fields(unasked(settings)):
        value, default = getattr(settings, field.name), getattr(unasked(settings), field.name)
        if dataclasses.is_dataclass(value):
            words += shlex.split(flags(value))
            continue
        if value == default or value is None or (field.name == "model" and value == OWN):
            continue
        name = field.name.replace("_", "-")
        words.append(f"--no-{name}" if value is False else f"--{name}")
        if isinstance(value, dict):
            words += [str(word) for pair in value.items() for word in pair]
        elif isinstance(value, (tuple, list)):
            words += [str(word) for word in value]
        elif not isinstance(value, bool):
            words.append(str(value))
    return shlex.join(words)
