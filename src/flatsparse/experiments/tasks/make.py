"""The task that a run's settings ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flatsparse.common.errors import InputError
from flatsparse.experiments.data.known_file_sets import KNOWN_FILE_SETS, find_known
from flatsparse.experiments.data.sources import load
from flatsparse.experiments.tasks.built_in import built_in
from flatsparse.experiments.tasks.image_files import image_file_task, is_of_files
from flatsparse.experiments.tasks.images import image_task
from flatsparse.experiments.tasks.run_task import RunTask
from flatsparse.experiments.tasks.settings import Dataset
from flatsparse.experiments.tasks.user import user_task


def make_task(chosen: Dataset, *, model: str, seed: int, label_noise: float, label_smoothing: float) -> RunTask:
    """Return the task of a run: a user's, or that of a data set.

    Args:
        chosen: the data, or the task, and how it is split.
        model: the name of the network; a user's task has its own.
        seed: decides which samples are trained on and which labels are wrong.
        label_noise: the fraction of training labels to make wrong.
        label_smoothing: see ``Classification`` and ``NextToken``.

    Raises: InputError for what cannot be had.
    """
    if chosen.task is not None:
        return user_task(chosen, seed=seed, label_noise=label_noise, label_smoothing=label_smoothing)
    if (task := built_in(chosen.data)) is not None:
        if label_noise:
            raise InputError(
                f"--label-noise is for images with a class each, and '{chosen.data}' is text: leave it out"
            )
        return task.make(chosen, model=model, seed=seed, label_smoothing=label_smoothing)
    how: dict[str, Any] = {
        "model": model,
        "seed": seed,
        "label_noise": label_noise,
        "label_smoothing": label_smoothing,
    }
    if is_of_files(chosen):
        return image_file_task(chosen, **how)
    return image_task(load(chosen.data, chosen.data_dir), chosen, **how)


def check_data(data: str, data_dir: Path | None) -> None:
    """Raise InputError when data cannot be had."""
    if (task := built_in(data)) is not None:
        task.check(data_dir)
    elif data in KNOWN_FILE_SETS:
        find_known(data, data_dir)
    else:
        load(data, data_dir)
