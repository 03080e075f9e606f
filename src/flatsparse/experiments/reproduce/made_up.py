"""Made-up data of the shapes of real data sets, and the tasks of them, for runs without the data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from flatsparse.common.errors import InputError
from flatsparse.common.seeds import generator
from flatsparse.experiments.data.samples import DataSet, Samples
from flatsparse.experiments.run.config import ResolvedRun
from flatsparse.experiments.tasks.images import image_task
from flatsparse.experiments.tasks.run_task import RunTask

SOURCE = "made up"


@dataclass(frozen=True)
class ImageShapes:
    """The shapes of a data set of images, and its sizes.

    Attributes:
        shape: of one image: height, width and channels.
        train: images that training and validation ones are taken from.
        held_out: images for validation, unless a run asks for another number.
        augmented: training images are cropped and flipped.
    """

    shape: tuple[int, int, int]
    classes: int
    train: int
    held_out: int
    augmented: bool = True


SHAPES = {
    "digits": ImageShapes((8, 8, 1), 10, 1000, 300, augmented=False),
    "cifar10": ImageShapes((32, 32, 3), 10, 50_000, 5000),
    "cifar100": ImageShapes((32, 32, 3), 100, 50_000, 5000),
    "imagenet": ImageShapes((224, 224, 3), 1000, 1_281_167, 0),
}


def training_samples(run: ResolvedRun) -> int:
    """Return how many samples a run trains on. Raises InputError for data of unknown shapes."""
    chosen, known = run.dataset, _shapes(run)
    if chosen.train_size is not None:
        return chosen.train_size
    return known.train - (known.held_out if chosen.validation_size is None else chosen.validation_size)


def made_up(run: ResolvedRun, samples: int) -> RunTask:
    """Return the task of a run on made-up data: its own constructor, of random samples of the real shapes.

    Args:
        run: whose task it is.
        samples: for training; there are none for validation.

    Raises: InputError for data of unknown shapes.
    """
    known = _shapes(run)
    source = generator(run.seed, "made up")
    pool, test = (_samples(known, count, source) for count in (samples, 1))
    data = DataSet(
        run.dataset.data,
        pool,
        test,
        classes=known.classes,
        augmented=known.augmented,
        validation_size=0,
        source=SOURCE,
    )
    chosen = dataclasses.replace(run.dataset, train_size=samples, validation_size=0)
    task = image_task(
        data,
        chosen,
        model=run.model,
        seed=run.seed,
        label_noise=run.label_noise,
        label_smoothing=run.optim.label_smoothing,
    )
    return task.to(torch.device(run.runtime.device))


def _shapes(run: ResolvedRun) -> ImageShapes:
    if run.dataset.title not in SHAPES:
        raise InputError(f"no shapes of '{run.dataset.title}' are known: rehearse data sets of {', '.join(SHAPES)}")
    return SHAPES[run.dataset.title]


def _samples(known: ImageShapes, count: int, source: torch.Generator) -> Samples:
    """Return random samples with a few classes, each of them at least twice where there are four samples or more."""
    images = torch.randint(0, 256, (count, *known.shape), dtype=torch.uint8, generator=source)
    return Samples(images, torch.arange(count) % min(known.classes, max(1, count // 2)))
