"""The task that a run's settings ask for."""

from __future__ import annotations

from flatsparse.experiments.data.sources import load
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
        label_smoothing: see ``Classification``.

    Raises: InputError for what cannot be had.
    """
    if chosen.task is not None:
        return user_task(chosen, seed=seed, label_noise=label_noise, label_smoothing=label_smoothing)
    data = load(chosen.data, chosen.data_dir)
    return image_task(data, chosen, model=model, seed=seed, label_noise=label_noise, label_smoothing=label_smoothing)
