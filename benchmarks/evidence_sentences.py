"""The five sentences of docs/evidence.md. What each says is chosen by what the rows bear, and its figures are theirs."""

from __future__ import annotations

from collections.abc import Mapping

from evidence_rows import FORGETTING, RIGHT, WRONG, Rival, Row
from regime import PLACES, SHARED
from regime_page import name as name_of

EPOCHS = SHARED["epochs"]  # of the paper's own regime
REGIME = tuple(f"regime, {name_of(place)}" for place in PLACES)  # the paper's largest gain first
AS_TRAINED = ("digits", "CIFAR-10, 500 images", "CIFAR-10", *REGIME)  # from the third on they may not be measured yet
Known = Mapping[tuple[str, float], Row]


def sentences(rows: Known) -> list[str]:
    """Return all five."""
    return [right(rows), wrong(rows), rounded(rows), forgotten(rows), claimed(rows)]


def right(rows: Known) -> str:
    """What S²-SAM gains as trained, with right labels."""
    own = [rows[name, RIGHT] for name in AS_TRAINED if (name, RIGHT) in rows]
    above, below = ([row for row in own if getattr(row.gain, side)] for side in ("above", "below"))
    if above:
        head = f"With right labels S²-SAM gains in some settings:** surely in {len(above)} of {len(own)}"
    elif below:
        head = f"With right labels S²-SAM can cost accuracy:** it surely does in {len(below)} of {len(own)} settings"
    else:
        head = f"With right labels expect no gain of S²-SAM:** in none of {len(own)} settings is its difference sure"
    texts = "; ".join(f"{row.gain.text} on {row.setting}" for row in own)
    rival = _rival(rows["digits", RIGHT])
    return (
        f"**{head} ({texts}), and {rival.name}, which costs as much, has {rival.gain.text} on digits, where S²-SAM minus it is "
        f"{rival.ours.text}."
    )


def wrong(rows: Known) -> str:
    """What S²-SAM gains as trained, with wrong labels, beside the best that costs as much."""
    digits = rows["digits", WRONG]
    rival = _rival(digits)
    if not rival.ours.sure:
        head = f"Where labels are wrong, S²-SAM is not surely better or worse than {rival.name}, which costs as much"
    elif rival.ours.mean < 0:
        head = f"Where labels are wrong, {rival.name} can do more than S²-SAM and costs no more"
    else:
        head = f"Where labels are wrong, S²-SAM can do more than {rival.name}, the best of what costs as much"
    name = "CIFAR-10" if ("CIFAR-10", WRONG) in rows else "CIFAR-10, 500 images"
    cifar = rows[name, WRONG]
    beside = "" if name == "CIFAR-10" else ", where label smoothing and early stopping are not measured,"
    return (
        f"**{head}:** on digits it has {rival.gain.text}, S²-SAM {digits.gain.text}, and S²-SAM minus it is {rival.ours.text}; "
        f"on {cifar.setting}{beside} S²-SAM has {cifar.gain.text} and {_rival(cifar).text}."
    )


def rounded(rows: Known) -> str:
    """What is left after rounding to 4 bits."""
    parts = _after(rows, "int4", "CIFAR-10, rounded")
    right = [own for own, _ in parts.values()]
    above, below = (sum(getattr(row.gain, side) for row in right) for side in ("above", "below"))
    where = "with right labels" + ("" if max(above, below) == len(right) else " in some settings")
    if above and below:
        head = f"Rounded to 4 bits, nets of S²-SAM are surely better and surely worse {where}"
    elif above or below:
        head = f"Rounded to 4 bits, nets of S²-SAM are surely {'better' if above else 'worse'} {where}"
    else:
        head = "Rounding to 4 bits is no proven reason for S²-SAM where labels are right"
    gains = " and ".join(f"{own.gain.text} on {name}" for name, (own, _) in parts.items())
    noisy = "; ".join(
        f"on {name} it has {own.gain.text} with wrong labels, where it has {rows[name, WRONG].gain.text} before rounding, and"
        f" {_rival(own).text}"
        for name, (_, own) in parts.items()
    )
    return f"**{head}:** {gains}; {noisy}."


def forgotten(rows: Known) -> str:
    """What is forgotten in fine-tuning on half of the classes."""
    parts = _after(rows, FORGETTING, "CIFAR-10, fine-tuned")
    own = [row for both in parts.values() for row in both]
    if any(row.gain.above for row in own):
        head = "Nets of S²-SAM forget less in some settings"
    elif any(row.gain.below for row in own):
        head = "Nets of S²-SAM forget more in some settings"
    elif all(row.gain.no_gain for row in own):
        head = "Nets of S²-SAM forget no less"
    else:
        head = "That nets of S²-SAM forget less is not shown"
    texts = "; ".join(
        f"those of {name} at 95 % have {right.gain.text} with right labels and {wrong.gain.text} with wrong ones"
        for name, (right, wrong) in parts.items()
    )
    return f"**{head}:** fine-tuned on half of the classes, {texts}."


def claimed(rows: Known) -> str:
    """What comes of the paper's own claims: a gain that grows with sparsity, and that of its regime."""
    if ("slope", RIGHT) in rows:
        first = "that the gain grows with sparsity " + " and ".join(
            f"{_held(rows['slope', noise])} with {name} labels ({rows['slope', noise].gain.text} points{more})"
            for noise, name, more in ((RIGHT, "right", " for each tenfold fewer weights"), (WRONG, "wrong", ""))
        )
    else:
        first = "that the gain grows with sparsity is not yet measured"
    if (REGIME[0], RIGHT) in rows:
        largest = rows[REGIME[0], RIGHT]
        said = "is ruled out at half a point" if largest.gain.no_gain else _held(largest)
        second = f"its largest gain on all of CIFAR-10 {said} in {EPOCHS} epochs ({largest.gain.text}, {_rival(largest).text})"
    else:
        second = "its gain on all of CIFAR-10 is not yet measured"
    return f"**Of the paper's claims,** {first}, and {second}."


def _after(rows: Known, digits: str, cifar: str) -> dict[str, tuple[Row, Row]]:
    """Return the rows of a change with right and with wrong labels, by data set; without those that are not measured yet."""
    names = {"digits": digits, "CIFAR-10": cifar}
    return {name: (rows[key, RIGHT], rows[key, WRONG]) for name, key in names.items() if (key, RIGHT) in rows}


def _held(row: Row) -> str:
    return "holds" if row.gain.above else "is refuted" if row.gain.below else "stays open"


def _rival(row: Row) -> Rival:
    assert row.rival is not None
    return row.rival
