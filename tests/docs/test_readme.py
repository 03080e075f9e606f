"""The README is short, and the table of the demo, there and among the measurements, says what the demo's record says."""

import json

import pytest

from tests.docs.blocks import PAGES, ROOT

ROWS = {"none": "SGD", "sam": "SAM", "s2sam": "S²-SAM", "random": "random direction"}


def test_it_has_at_most_seven_hundred_words():
    assert len(PAGES["README.md"].read_text(encoding="utf-8").split()) <= 700


def gain(difference):
    """The mean with its 95 % interval, bold where that leaves out 0."""
    mean, (low, high) = f"{difference['mean']:+.1f}", difference["interval95"]
    mean = "0.0" if mean in ("+0.0", "-0.0") else mean
    mean = mean if low <= 0 <= high else f"**{mean}**"
    return f"{mean} [{low:+.1f}, {high:+.1f}]".replace("-", "−")


@pytest.mark.parametrize("page", ["README.md", "docs/measurements.md"])
def test_the_table_of_the_demo_is_what_the_demo_found(page):
    right, wrong = json.loads((ROOT / "results" / "demo.json").read_text(encoding="utf-8"))["tables"]
    assert (right["label_noise"], wrong["label_noise"]) == (0.0, 0.2)
    text = PAGES[page].read_text(encoding="utf-8")
    for rows in zip(right["rows"], wrong["rows"], strict=True):
        plain = rows[0]["sharpness"] == "none"
        means = [f"{row['mean']:.2f} ± {row['std']:.2f}" for row in rows]
        gains = ["" if plain else f"{gain(row['difference'])} " for row in rows]
        times = "1" if plain else ", ".join(f"{row['step_time']:.2f}" for row in rows)
        outcome = " ".join(f"{mean} | {gained}|" for mean, gained in zip(means, gains, strict=True))
        line = f"| {ROWS[rows[0]['sharpness']]} | {outcome} {rows[0]['gradients_per_step']:g} | {times} |"
        assert line in text.splitlines()
