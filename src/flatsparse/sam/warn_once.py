"""Warnings that an optimizer gives once each."""

from __future__ import annotations

import warnings


class WarnOnce:
    """A function that warns of each topic at most once, in the name of an optimizer."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._topics: set[str] = set()

    def __call__(self, topic: str, message: str) -> None:
        if topic not in self._topics:
            self._topics.add(topic)
            warnings.warn(f"{self._name}: {message}", stacklevel=4)
