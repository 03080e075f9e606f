"""The accuracy of finished runs on corrupted test images."""

from __future__ import annotations

import statistics
from typing import Any

from torch import Tensor

from flatsparse.common.errors import InputError
from flatsparse.experiments.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from flatsparse.experiments.data.samples import Samples
from flatsparse.experiments.run.config import change
from flatsparse.experiments.run.evaluation import evaluate
from flatsparse.experiments.run.load import Finished


def robustness(finished: Finished, *, seed: int = 0) -> dict[str, Any]:
    """A finished run's accuracy on corrupted test images, in percent.

    Args:
        finished: of a run on images; see ``load_run``.
        seed: the same for all compared runs, so that all see the same images.

    Returns: ``clean``, on the images as they are; ``by``, for each corruption its accuracies from severity 1 to 5; and
        ``mean``, over all of these.
    Raises: InputError for a run on tokens.
    """
    test = finished.splits.test
    if test.are_tokens:
        raise InputError(f"'{finished.folder}' is a run on tokens: corruptions are of images")
    run = change(finished.run, device=str(test.images.device))

    def accuracy(images: Tensor) -> float:
        percent, _ = evaluate(run, finished.model, Samples(images, test.labels), finished.splits)
        assert percent is not None
        return percent

    by = {
        name: [accuracy(corrupt(test.images, name, severity, seed)) for severity in SEVERITIES] for name in CORRUPTIONS
    }
    return {"clean": accuracy(test.images), "mean": statistics.fmean(x for row in by.values() for x in row), "by": by}
