"""Made-up data of the shapes of real data sets, and the tasks of them, for runs without the data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from flatsparse.common.errors import InputError
from flatsparse.common.seeds import generator
from flatsparse.experiments.data.samples import DataSet, Samples
from flatsparse.experiments.data.sentences import Pairs, SentenceParts
from flatsparse.experiments.data.token_batches import TokenLists, TokenSplit
from flatsparse.experiments.data.vocabulary import END, SPECIAL, START, Words
from flatsparse.experiments.run.config import ResolvedRun
from flatsparse.experiments.tasks.images import image_task
from flatsparse.experiments.tasks.run_task import RunTask
from flatsparse.experiments.tasks.translation import TokenPairs, translation_task

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
    unit = 1  # of a batch's size, for each sample

    def task(self, run: ResolvedRun, samples: int) -> RunTask:
        """Return the task of classifying such images, as many for training; they are held in memory."""
        source = generator(run.seed, "made up")
        pool, test = (self._samples(count, source) for count in (samples, 1))
        data = DataSet(
            run.dataset.data,
            pool,
            test,
            classes=self.classes,
            augmented=self.augmented,
            validation_size=0,
            source=SOURCE,
        )
        return image_task(
            data,
            dataclasses.replace(run.dataset, train_size=samples, validation_size=0),
            model=run.model,
            seed=run.seed,
            label_noise=run.label_noise,
            label_smoothing=run.optim.label_smoothing,
        )

    def _samples(self, count: int, source: torch.Generator) -> Samples:
        """Return random samples with a few classes, each of them at least twice where there are four samples or more."""
        images = torch.randint(0, 256, (count, *self.shape), dtype=torch.uint8, generator=source)
        return Samples(images, torch.arange(count) % min(self.classes, max(1, count // 2)))


@dataclass(frozen=True)
class PairShapes:
    """The shapes of a set of sentence pairs, and its sizes.

    Attributes:
        vocabulary: tokens, unless a run asks for another number.
        train: pairs for training.
        unit: tokens of a sentence, on either side. Ours: about the mean of the longer side.
    """

    vocabulary: int
    train: int
    unit: int = 30
    held_out = 0

    def task(self, run: ResolvedRun, samples: int) -> RunTask:
        """Return the task of translating such sentences, as many for training."""
        size = run.dataset.vocabulary or self.vocabulary
        words = Words((*SPECIAL, *(f"word{number}" for number in range(len(SPECIAL), size))))
        pool, other = (self._pairs(count, size, generator(run.seed, "made up", count)) for count in (samples, 1))
        parts = SentenceParts(run.dataset.data, SOURCE, *(Pairs(("",), ("",)) for _ in range(3)))
        return translation_task(
            parts,
            TokenPairs(words, pool, other, other, SOURCE, ()),
            dataclasses.replace(run.dataset, train_size=samples, validation_size=0),
            model=run.model,
            seed=run.seed,
            label_smoothing=run.optim.label_smoothing,
        )

    def _pairs(self, count: int, size: int, source: torch.Generator) -> TokenSplit:
        drawn = torch.randint(len(SPECIAL), size, (2, count, self.unit - 2), generator=source).tolist()
        sources, targets = ([[START, *tokens, END] for tokens in side] for side in drawn)
        return TokenSplit(TokenLists.of(targets), TokenLists.of(sources), torch.arange(count), ("",) * count)


SHAPES: dict[str, ImageShapes | PairShapes] = {
    "digits": ImageShapes((8, 8, 1), 10, 1000, 300, augmented=False),
    "cifar10": ImageShapes((32, 32, 3), 10, 50_000, 5000),
    "cifar100": ImageShapes((32, 32, 3), 100, 50_000, 5000),
    "imagenet": ImageShapes((224, 224, 3), 1000, 1_281_167, 0),
    "imagenette": ImageShapes((64, 64, 3), 10, 9469, 946),
    "numbers": PairShapes(80, 10_000, 12),
    "multi30k": PairShapes(8000, 29_000, 18),
    "wmt14": PairShapes(37_000, 4_500_000),
}


def shapes_of(run: ResolvedRun) -> ImageShapes | PairShapes:
    """Return the shapes of a run's data. Raises InputError where they are not known."""
    if run.dataset.title not in SHAPES:
        raise InputError(f"no shapes of '{run.dataset.title}' are known: rehearse data sets of {', '.join(SHAPES)}")
    return SHAPES[run.dataset.title]


def training_samples(run: ResolvedRun) -> int:
    """Return how many samples a run trains on. Raises InputError for data of unknown shapes."""
    chosen, known = run.dataset, shapes_of(run)
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
    return shapes_of(run).task(run, samples).to(torch.device(run.runtime.device))
