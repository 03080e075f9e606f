"""The accuracy of finished runs on corrupted test images."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

from torch import Tensor

from flatsparse.common.errors import InputError
from flatsparse.experiments.data.arrays import ArraySplit
from flatsparse.experiments.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from flatsparse.experiments.data.samples import Samples
from flatsparse.experiments.run.config import change
from flatsparse.experiments.run.evaluation import evaluated
from flatsparse.experiments.run.load import Finished


def robustness(finished: Finished, *, seed: int = 0) -> dict[str, Any]:
    """A finished run's accuracy on corrupted test images, in percent.

    Args:
        finished: of a run on images; see ``load_run``.
        seed: the same for all compared runs, so that all see the same images.

    Returns: ``clean``, on the images as they are; ``by``, for each corruption its accuracies from severity 1 to 5; and
        ``mean``, over all of these.
    Raises: InputError for a run on anything but images in memory.
    """
    test = finished.task.splits.test
    if not isinstance(test, ArraySplit):
        raise InputError(f"'{finished.folder}' is not a run on images in memory: corruptions are of those")
    clean = test.samples.images
    run = change(finished.run, device=str(clean.device))

    def accuracy(images: Tensor) -> float:
        split = dataclasses.replace(test, samples=Samples(images, test.samples.labels))
        evaluation = evaluated(run, finished.task, finished.model, split)
        assert evaluation is not None  # there are test images
        return evaluation.value

    by = {name: [accuracy(corrupt(clean, name, severity, seed)) for severity in SEVERITIES] for name in CORRUPTIONS}
    return {"clean": accuracy(clean), "mean": statistics.fmean(x for row in by.values() for x in row), "by": by}
