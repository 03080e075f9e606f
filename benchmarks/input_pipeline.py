"""Images per second: batched augmentation against a loop over images, and what layout and bf16 do for a training step.

    python benchmarks/input_pipeline.py --rounds 12

Images are as large as CIFAR's, drawn at random, since no time hangs on what they show. The loop is the plain one: each image
padded, cropped, flipped and normalized by itself in float32, in the main process. Both pipelines end in float32 batches.
A round times every variant once, in an order drawn anew; ratios are of the same round, over the first variant of a table.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from flatsparse.common.errors import check_count
from flatsparse.experiments.data.arrays import ArraySplit
from flatsparse.experiments.data.samples import Samples
from flatsparse.experiments.run.devices import usable_device
from flatsparse.experiments.run.environment import processor
from flatsparse.experiments.stats import FEWEST, median
from flatsparse.models import MODELS

BATCH = 128
Pipeline = Callable[[ArraySplit], Iterator[tuple[Tensor, Tensor]]]


def batched(split: ArraySplit) -> Iterator[tuple[Tensor, Tensor]]:
    """The input pipeline of training."""
    return (batch.content for batch in split.batches(BATCH, augment=True, seed=0))


def one_by_one(split: ArraySplit) -> Iterator[tuple[Tensor, Tensor]]:
    """A loop over images."""
    samples = split.samples
    mean, std = (statistic.to(samples.images.device).view(3, 1, 1) for statistic in (split.mean, split.std))
    for index in torch.randperm(len(split)).split(BATCH):
        done = []
        for i in index.tolist():
            image = F.pad(samples.images[i].permute(2, 0, 1).float() / 255, (4, 4, 4, 4))
            top, left = random.randrange(9), random.randrange(9)
            image = image[:, top : top + 32, left : left + 32]
            done.append(((image.flip(2) if random.random() < 0.5 else image) - mean) / std)
        yield torch.stack(done), samples.labels[index]


def reading(pipeline: Pipeline, split: ArraySplit) -> Callable[[], None]:
    """Go through all batches."""

    def work() -> None:
        for _ in pipeline(split):
            pass

    return work


def training(
    pipeline: Pipeline, split: ArraySplit, model: str, *, layout: torch.memory_format, bf16: bool
) -> Callable[[], None]:
    """Train on all batches, with SGD."""
    net = MODELS[model]().to(split.samples.images.device)
    net.to(memory_format=layout)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)

    def work() -> None:
        for images, labels in pipeline(split):
            with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
                loss = F.cross_entropy(net(images.contiguous(memory_format=layout)), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return work


def rates(variants: dict[str, Callable[[], None]], images: int, rounds: int, device: str) -> dict[str, list[float]]:
    """Images per second of each variant in each round; a first round does not count."""
    found: dict[str, list[float]] = {name: [] for name in variants}
    for counted in [False] + [True] * rounds:
        for name in random.sample(list(variants), len(variants)):
            began = time.perf_counter()
            variants[name]()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if counted:
                found[name].append(images / (time.perf_counter() - began))
    return found


def show(title: str, found: dict[str, list[float]]) -> None:
    base = next(iter(found.values()))
    print(title)
    for name, speeds in found.items():
        ratio = median([mine / theirs for mine, theirs in zip(speeds, base, strict=True)])
        print(f"  {name:<28}{statistics.median(speeds):>9.0f}   {ratio.mean:.2f} ({ratio.low:.2f} to {ratio.high:.2f})")


def main(rounds: int = 12, images: int = 512, model: str = "resnet20", device: str = "auto") -> None:
    """Measure and print both tables: images per second, and the ratio to the first line with its 95 % interval.

    Args:
        rounds: how often each variant is timed.
        images: that a variant goes through in a round.
        model: that is trained.
        device: cpu, cuda or auto.
    """
    check_count("--rounds", rounds, minimum=FEWEST)
    check_count("--images", images)
    place, half = usable_device(device), torch.full((3,), 0.5)
    pixels = torch.randint(0, 256, (images, 32, 32, 3), dtype=torch.uint8)
    some = Samples(pixels, torch.randint(10, (images,))).to(torch.device(place))
    split = ArraySplit(some, half, half)
    read = {"one by one": reading(one_by_one, split), "batched": reading(batched, split)}
    show("input alone, images/s", rates(read, images, rounds, place))
    plain, last = torch.contiguous_format, torch.channels_last
    train = {
        "one by one, float32": training(one_by_one, split, model, layout=plain, bf16=False),
        "batched, float32": training(batched, split, model, layout=plain, bf16=False),
        "batched, channels last": training(batched, split, model, layout=last, bf16=False),
        "batched, channels last, bf16": training(batched, split, model, layout=last, bf16=True),
    }
    show(f"with training of {model}, images/s", rates(train, images, rounds, place))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {processor(place)}")


if __name__ == "__main__":
    tyro.cli(main)
