"""Images in memory as the task of a run."""

from __future__ import annotations

import functools

from flatsparse.experiments.data.samples import DataSet
from flatsparse.experiments.data.splits import split
from flatsparse.experiments.tasks.classification import Classification
from flatsparse.experiments.tasks.networks import network
from flatsparse.experiments.tasks.settings import Dataset


def image_task(
    data: DataSet, chosen: Dataset, *, model: str, seed: int, label_noise: float, label_smoothing: float
) -> Classification:
    """Return the task of classifying a data set's images; which are trained on follows the seed."""
    splits = split(
        data,
        train_size=chosen.train_size,
        validation_size=chosen.validation_size,
        label_noise=label_noise,
        seed=seed,
    )
    return Classification(
        name=data.name,
        identity=data.identity,
        splits=splits,
        fresh=functools.partial(network, model, data.classes, data.pool.shape[-1]),
        samples=f"images of {data.classes} classes",
        loss_name="cross-entropy",
        notes=data.notes,
        augmented=data.augmented and chosen.augmentation,
        classes=data.classes,
        blank=data.pool.blank,
        network=model,
        label_smoothing=label_smoothing,
        class_names=data.class_names,
    )
