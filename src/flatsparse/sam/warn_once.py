"""Warnings that an optimizer gives once each."""

from __future__ import annotations

import warnings


class WarnOnce:
    """A function that warns of each topic at most once, in the name of an optimizer.

    Attributes:
        given: the messages so far, by topic.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.given: dict[str, str] = {}

    def __call__(self, topic: str, message: str) -> None:
        if topic not in self.given:
            self.given[topic] = message
            warnings.warn(f"{self._name}: {message}", stacklevel=4)
