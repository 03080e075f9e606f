"""The settings of a run that decide what it works on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro


def without(text: str) -> Any:
    """Return the help of the flag --no-… of an option that is on by default."""
    return tyro.conf.arg(help=text, help_behavior_hint="")


@dataclass(frozen=True)
class Dataset:
    """The data of a run, and how it is split."""

    data: str = "digits"
    """Data set: digits (embedded), cifar10, cifar100, imagenet, imagenette, a folder or a hub id; of text: numbers (embedded),
    multi30k, wmt14, a folder with train.txt, or FOLDER:en-de with train.en and train.de."""
    task: str | None = None
    """A task of your own in place of --data and --model: path/to/file.py:function, whose code is then run."""
    data_dir: Path | None = None
    """Folder of local copies of data sets (or set FLATSPARSE_DATA)."""
    train_size: int | None = None
    """Number of training samples. By default all that are not held out."""
    validation_size: int | None = None
    """Number of samples held out for validation. By default 300 of digits, 5,000 of cifar10 and a tenth of a task's."""
    vocabulary: int | None = None
    """Subwords of text. By default 8,000 for pairs of sentences, 37,000 for wmt14, and 2,000 for a text."""
    augmentation: Annotated[bool, without("Take training images as they are, neither cropped nor flipped.")] = True
    """Crop and flip training images of every data set except digits; without it they are taken as they are."""
    image_size: int | None = None
    """Read the images of a folder while training, as random crops of this side: for images of any size, or more than fit
    into memory. By default 224 for imagenet and 64 for imagenette; other images are held in memory as they are."""
    resize: int | None = None
    """Shorter side of images in evaluations, before the middle is cut out. By default 256 for each 224 of --image-size."""
    workers: int | None = None
    """Processes that read samples ahead of training; results do not depend on it. By default one a core for images in
    files, and a task's own."""

    @property
    def title(self) -> str:
        """The task or the data set, as it was named."""
        return self.task or self.data
