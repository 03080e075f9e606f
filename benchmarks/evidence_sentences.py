"""The five sentences of docs/evidence.md. What each says is chosen by what the rows bear, and its figures are theirs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from evidence_rows import FORGETTING, RIGHT, WRONG, Rival, Row
from judged import difference
from regime import PLACES, SHARED
from regime_page import name as name_of

EPOCHS = SHARED["epochs"]  # of the paper's own regime
REGIME = tuple(f"regime, {name_of(place)}" for place in PLACES)  # the paper's largest gain first
AS_TRAINED = ("digits", "CIFAR-10, 500 images", "CIFAR-10", *REGIME)  # from the third on they may not be measured yet
Known = Mapping[tuple[str, float], Row]


def sentences(rows: Known, surface: str = "") -> list[str]:
    """Return all five.

    Args:
        surface: in how many cases the paper's claim about the loss surface holds; empty while that is not measured.
    """
    return [right(rows), wrong(rows), rounded(rows), forgotten(rows), claimed(rows, surface)]


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
    texts = "; ".join(f"{row.text} on {row.setting}" for row in own)
    behind = [row for row in own if (ours := _rival(row).ours).sure and ours.mean < 0]
    minus = "; ".join(f"minus {_rival(row).name} {_rival(row).ours.text} on {row.setting}" for row in behind)
    told = [
        *(f"in {count} its interval lies {side} 0" for side, count in _sides(own).items() if count),
        f"it is surely below the best of what costs as much in {len(behind) or 'none'}"
        + (f" ({minus})" if minus else ""),
    ]
    return f"**{head} ({texts}); {'; '.join(told)}."


def _sides(rows: Iterable[Row]) -> dict[str, int]:
    """Return how many intervals lie above and below 0, sure or not."""
    intervals = [row.gain.interval for row in rows]
    return {"above": sum(one.low > 0 for one in intervals), "below": sum(one.high < 0 for one in intervals)}


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
    few = rows["CIFAR-10, 500 images", WRONG]
    texts = [
        f"on digits it has {rival.gain.text}, S²-SAM {digits.gain.text}, and S²-SAM minus it is {rival.ours.text}",
        f"on {few.setting}, where label smoothing and early stopping are not measured, S²-SAM has {few.gain.text} and"
        f" {_rival(few).text}",
    ]
    if ("CIFAR-10", WRONG) in rows:
        many = rows["CIFAR-10", WRONG]
        texts.append(f"on {many.setting}, which are not fitted, S²-SAM has {many.gain.text} and {_rival(many).text}")
    return f"**{head}:** {'; '.join(texts)}."


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
    return f"**{head}:** {_differ(parts, 'rounding')}."


def forgotten(rows: Known) -> str:
    """What is left after fine-tuning on half of the classes."""
    parts = _after(rows, FORGETTING, "CIFAR-10, fine-tuned")
    own = [row for both in parts.values() for row in both]
    above, below = (any(getattr(row.gain, side) for row in own) for side in ("above", "below"))
    if above and below:
        head = "are surely better and surely worse in some settings"
    elif above or below:
        head = f"are surely {'better' if above else 'worse'} in some settings"
    else:
        head = "are not surely better or worse"
    return f"**Fine-tuned on half of the classes, nets of S²-SAM {head}:** {_differ(parts, 'fine-tuning')}."


def claimed(rows: Known, surface: str = "") -> str:
    """What comes of the paper's own claims: on gain and loss surface over sparsity, and on the gain of its regime."""
    if ("slope", RIGHT) in rows:
        first = "that the gain grows with sparsity " + " and ".join(
            f"{_held(rows['slope', noise])} with {name} labels ({rows['slope', noise].gain.text} points{more})"
            for noise, name, more in ((RIGHT, "right", " for each tenfold fewer weights"), (WRONG, "wrong", ""))
        )
    else:
        first = "that the gain grows with sparsity is not yet measured"
    if surface:
        first += (
            f", that the loss surface is sharper in sparse nets and flatter with S²-SAM holds in {surface} cases on digits, where"
            " flatter nets gain nothing with right labels"
        )
    if (REGIME[0], RIGHT) in rows:
        largest = rows[REGIME[0], RIGHT]
        if largest.gain.no_gain:
            said = "shows no gain of half a point"
        elif largest.gain.sure:
            said = "surely gains" if largest.gain.above else "surely loses"
        else:
            said = "leaves it open"
        second = (
            f"where the largest of its gains on CIFAR-10 is that we know ({name_of(PLACES[0])}, ResNet-32, 160 epochs), ResNet-20"
            f" in {EPOCHS} epochs {said} ({largest.gain.text}, {_rival(largest).text})"
        )
    else:
        second = "its gain on all of CIFAR-10 is not yet measured"
    return f"**Of the paper's claims,** {first}, and {second}."


def _after(rows: Known, digits: str, cifar: str) -> dict[str, tuple[Row, Row]]:
    """Return the rows of a change with right and with wrong labels, by data set; without those that are not measured yet."""
    names = {"digits": digits, "CIFAR-10": cifar}
    return {name: (rows[key, RIGHT], rows[key, WRONG]) for name, key in names.items() if (key, RIGHT) in rows}


def _differ(parts: Mapping[str, tuple[Row, Row]], change: str) -> str:
    """Return S²-SAM's differences to plain training with right and with wrong labels, and the part that the change makes."""
    texts = []
    for labels, rows in zip(("right", "wrong"), zip(*parts.values(), strict=True), strict=True):
        whole = " and ".join(f"{row.gain.text} on {name}" for name, row in zip(parts, rows, strict=True))
        part = " and ".join(difference(row.by_change or ()) for row in rows)
        texts.append(f"with {labels} labels S²-SAM minus plain is {whole}, of which {change} makes {part}")
    return "; ".join(texts)


def _held(row: Row) -> str:
    return "holds" if row.gain.above else "is refuted" if row.gain.below else "stays open"


def _rival(row: Row) -> Rival:
    assert row.rival is not None
    return row.rival
