"""Steps to an accuracy."""

from __future__ import annotations

from collections.abc import Iterable

from flatsparse.experiments.run.records import EpochRecord

REACHED = (50, 60, 70, 80, 90, 95)  # percent; the levels of ``steps_to`` in a result


def steps_to(epochs: Iterable[EpochRecord], accuracy: float) -> int | None:
    """Return the optimizer steps at the end of the first epoch that reaches an accuracy in percent on the validation images.

    None when no epoch does. Test accuracy is measured once, at the end of a run, so it cannot be asked for.
    """
    for epoch in epochs:
        if epoch.validation_accuracy is not None and epoch.validation_accuracy >= accuracy:
            return epoch.step
    return None
