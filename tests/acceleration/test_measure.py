"""The measurement of which form is faster: it repeats what disagrees, and takes sparse only where nearly all pairs agree."""

import pytest

from flatsparse.acceleration import measure

CLEAR, SLOWER, MIXED = [2.0] * 5, [0.5] * 5, [2.0, 0.5, 2.0, 0.5, 2.0]


@pytest.mark.parametrize(
    ("ratios", "found", "tries"),
    [
        (CLEAR, 2.0, 1),
        ([0.5, *CLEAR[1:]], 2.0, 1),  # one pair may differ
        (SLOWER, 0.0, 1),
        ([1.05] * 5, 0.0, 1),  # below the margin
        (MIXED + CLEAR, 2.0, 2),
        (MIXED + MIXED + SLOWER, 0.0, 3),
        (MIXED * 3, 0.0, 3),
    ],
)
def test_pairs_that_disagree_are_measured_again(monkeypatch, ratios, found, tries):
    times = iter([seconds for ratio in ratios for seconds in (ratio, 1.0)])
    monkeypatch.setattr(measure, "_seconds", lambda call: next(times))
    assert measure._ratio(lambda: None, lambda: None) == found
    assert len(list(times)) == 2 * (len(ratios) - tries * measure.PAIRS)
