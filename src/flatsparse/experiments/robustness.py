"""The accuracy of finished runs on corrupted test images."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from flatsparse.common.errors import InputError
from flatsparse.experiments.data.arrays import ArraySplit
from flatsparse.experiments.data.corrupted import CorruptedPart
from flatsparse.experiments.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from flatsparse.experiments.data.image_arrays import ArrayRows
from flatsparse.experiments.data.image_files import ImageFiles, file_list
from flatsparse.experiments.data.listings import file_content
from flatsparse.experiments.data.pixels import gathered
from flatsparse.experiments.data.samples import Samples
from flatsparse.experiments.data.streamed import StreamedSplit
from flatsparse.experiments.data.views import View
from flatsparse.experiments.run.config import ResolvedRun, change
from flatsparse.experiments.run.load import Finished
from flatsparse.experiments.run.memory import samples_at_once
from flatsparse.experiments.run.precision import autocast
from flatsparse.experiments.tasks.classification import Classification

ImageSplit: TypeAlias = ArraySplit | StreamedSplit
Images = Iterable[tuple[Tensor, Tensor]]  # uint8 (N, H, W, C), and their labels


def robustness(finished: Finished, *, seed: int = 0) -> dict[str, Any]:
    """A finished run's accuracy on corrupted test images, in percent.

    Args:
        finished: of a run on images; see ``load_run``.
        seed: the same for all compared runs, so that all see the same images.

    Returns: ``clean``, on the images as they are; ``by``, for each corruption its accuracies from severity 1 to 5; and
        ``mean``, over all of these.
    Raises: InputError for a run on anything but images.
    """
    test = images_of(finished)
    size = images_at_once([finished])

    def accuracy(images: Images) -> float:
        return percent(right_predictions([finished], images)[0])

    by = {
        name: [accuracy(corrupted(test.pixels(size), name, severity, seed)) for severity in SEVERITIES]
        for name in CORRUPTIONS
    }
    return {
        "clean": accuracy(test.pixels(size)),
        "mean": statistics.fmean(x for row in by.values() for x in row),
        "by": by,
    }


def images_of(finished: Finished, count: int | None = None) -> ImageSplit:
    """Return the test images of a run: all, or ``count`` at even distances, because folders come class by class.

    Raises: InputError for a run on anything but images with a class each.
    """
    task = finished.task
    test = task.splits.test
    if not isinstance(task, Classification) or not isinstance(test, ArraySplit | StreamedSplit):
        raise InputError(f"'{finished.folder}' is not a run on images but on '{task.name}': corruptions are of images")
    return spread(test, count)


def spread(split: ImageSplit, count: int | None) -> ImageSplit:
    """Return ``count`` images at even distances, or all where there are not as many."""
    if count is None or count >= len(split):
        return split
    return split.subset(torch.arange(count) * len(split) // count)


def corrupted(images: Images, name: str, severity: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield corrupted copies of images, whose chance follows their place; see ``corrupt``."""
    first = 0
    for pixels, labels in images:
        yield corrupt(pixels, name, severity, seed, first=first), labels
        first += len(pixels)


def published(split: ImageSplit, part: CorruptedPart) -> ImageSplit:
    """Return the images of a published set as a split of the same kind as a run's.

    Those of runs on images in files are resized to the run's size and not cut: they are the middle of larger ones already.

    Raises: InputError for images of another size or kind than those in memory are of, or that are damaged.
    """
    labels = torch.from_numpy(part.labels)
    name = f"{part.corruption}, severity {part.severity}"
    if isinstance(split, StreamedSplit):
        view = View(split.view.size, split.view.size)
        return dataclasses.replace(split, files=ImageFiles(_stored(part), labels), name=name, view=view)
    if isinstance(part.images, np.ndarray):
        images = torch.from_numpy(np.array(part.images))
    else:
        contents = ((str(file), file_content(file)) for file in part.images)
        images, _ = gathered(contents, len(part.images), name)
    if images.shape[1:] != split.samples.shape:
        shapes = ("x".join(map(str, shape)) for shape in (images.shape[1:], split.samples.shape))
        raise InputError("corrupted images are {} and those of the run {}: give the set of its data".format(*shapes))
    return dataclasses.replace(split, samples=Samples(images, labels).to(split.labels.device))


def _stored(part: CorruptedPart) -> Any:
    """Return where the images of a part are."""
    if isinstance(part.images, np.ndarray):
        return ArrayRows(torch.from_numpy(np.array(part.images)))
    root = part.images[0].parents[1]
    return file_list(root, (str(file.relative_to(root)) for file in part.images))


def images_at_once(runs: Sequence[Finished]) -> int:
    """Return how many images to compute at once, for all of some runs."""
    return min(
        run.run.runtime.eval_batch_size or samples_at_once(_as_loaded(run), run.task, run.model, run.task.splits.test)
        for run in runs
    )


@torch.no_grad()
def right_predictions(runs: Sequence[Finished], images: Images) -> list[Tensor]:
    """Return for each run which images it gives the right class, bool (N) on the CPU.

    Images are made once for all runs, and normalized by each run's own statistics.
    """
    found: list[list[Tensor]] = [[] for _ in runs]
    for pixels, labels in images:
        for run, own in zip(runs, found, strict=True):
            test = images_of(run)
            with autocast(_as_loaded(run)):
                outputs = run.model(test.normalized(pixels))
            own.append((outputs.float().argmax(-1) == labels).cpu())
    return [torch.cat(own) for own in found]


def percent(right: Tensor) -> float:
    """Return an accuracy in percent."""
    return 100 * int(right.sum()) / len(right)


def _as_loaded(finished: Finished) -> ResolvedRun:
    """Return the settings of a run with the device that it was loaded to."""
    return change(finished.run, device=str(next(finished.model.parameters()).device))
