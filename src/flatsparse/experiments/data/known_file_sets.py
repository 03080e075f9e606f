"""Known data sets whose images stay in their files, by the folders that they come in."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from flatsparse.common.errors import InputError
from flatsparse.experiments.data.sources import folder_of_copies


@dataclass(frozen=True)
class KnownFileSet:
    """A data set that is known by name.

    Attributes:
        about: what it is, in a sentence.
        folders: names of the folders of local copies; the first that is there is read.
        layout: what has to be put there.
        size: the side that its images are cut to by default.
        classes: how many it has.
    """

    about: str
    folders: tuple[str, ...]
    layout: str
    size: int
    classes: int


KNOWN_FILE_SETS = {
    "imagenet": KnownFileSet(
        "ImageNet-1k (Russakovsky et al. 2015): 1.28 million images of 1,000 classes, read while a run trains.",
        ("imagenet", "imagenet-1k", "ILSVRC2012", "ILSVRC"),
        "imagenet/train/CLASS/ and imagenet/val/, or the hub's parquet files,",
        size=224,
        classes=1000,
    ),
    "imagenette": KnownFileSet(
        "Imagenette (Howard 2019): 13,000 images of ten classes of ImageNet, of 64 pixels unless --image-size says otherwise.",
        ("imagenette", "imagenette64", "imagenette2", "imagenette2-160", "imagenette2-320"),
        "imagenette/train/CLASS/ and imagenette/val/CLASS/, or its arrays train.npz and test.npz,",
        size=64,
        classes=10,
    ),
}


def find_known(name: str, data_dir: Path | None) -> Path:
    """Return the folder of a known set among the local copies. Raises InputError when it is not there."""
    copies, known = folder_of_copies(data_dir), KNOWN_FILE_SETS[name]
    found = next((copies / folder for folder in known.folders if os.path.isdir(copies / folder)), None)
    if found is None:
        raise InputError(
            f"no {name} under '{copies}': put {known.layout} there, and name the folder with --data-dir or FLATSPARSE_DATA"
        )
    return found
