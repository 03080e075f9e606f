"""The name, color and marker of each sharpness in texts, tables and pictures, others derived from the name; scores as text."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

LABELS = {
    "none": "plain",
    "sam": "SAM",
    "s2sam": "S²-SAM",
    "looksam": "LookSAM",
    "less_average": "gradient less average",
    "mask": "mask gradient",
    "stale": "stale gradient",
}
COLORS = {
    "none": "#666666",
    "sam": "#0072b2",
    "s2sam": "#d55e00",
    "random": "#999999",
    "momentum": "#009e73",
    "average": "#cc79a7",
    "looksam": "#56b4e9",
}
MARKERS = {"none": "o", "sam": "s", "s2sam": "D"}  # as matplotlib names them
SPARE = ("#e69f00", "#332288", "#117733", "#882255", "#aa4499", "#6b4c00")


def label(sharpness: str) -> str:
    """The name of a sharpness as a reader sees it.

    >>> label("s2sam"), label("previous_two")
    ('S²-SAM', 'previous two')
    """
    return LABELS.get(sharpness, sharpness.replace("_", " "))


def color(sharpness: str) -> str:
    """The color of a sharpness, the same in every picture.

    >>> color("s2sam"), color("previous_two") in SPARE
    ('#d55e00', True)
    """
    return COLORS.get(sharpness) or SPARE[zlib.crc32(sharpness.encode(errors="surrogatepass")) % len(SPARE)]


def marker(sharpness: str) -> str:
    """The marker of a sharpness, which distinguishes the commonest where colors cannot."""
    return MARKERS.get(sharpness, "^")


def scores_text(scores: Mapping[str, float]) -> str:
    """The scores of a task, each with its name and six digits.

    >>> scores_text({"error": 0.25, "rank": 3.0})
    'error 0.25, rank 3'
    """
    return ", ".join(f"{name} {value:.6g}" for name, value in scores.items())
