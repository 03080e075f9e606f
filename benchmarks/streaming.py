"""Images in files: memory at 2,000 and 20,000 of them, and the rate against a plain ``DataLoader`` loop.

    python benchmarks/streaming.py --rounds 8

Images are made anew in a temporary folder: smooth pictures of 60x50 to 160x120 pixels, three in five of them RGB in JPEG, the
others grey and CMYK in JPEG, palettes and 16-bit grey in PNG. The plain loop decodes with the same function, crops and flips at
random, and its batches are normalized at once as ours are; that with Pillow alone converts to RGB, which is wrong for 16 bits.

Memory is the peak of the proportional set size (PSS: a page that processes share counts once) of the process and its workers
together, in a process of its own for each size, over an epoch of training. A round runs every variant once, in an order drawn
anew; ratios are of the same round, over the plain loop, with a 95 % interval of their median. Linux alone tells PSS.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from input_pipeline import show
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from flatsparse.common.errors import check_count
from flatsparse.experiments.data.arrays import normalized
from flatsparse.experiments.data.file_sets import read_image_files
from flatsparse.experiments.data.image_files import ImageFiles
from flatsparse.experiments.data.pixels import decoded
from flatsparse.experiments.data.streamed import MEAN, STD, StreamedSplit
from flatsparse.experiments.data.views import View, random_box
from flatsparse.experiments.run.environment import processor
from flatsparse.experiments.stats import FEWEST
from flatsparse.models import MODELS

BATCH, CLASSES, SIZES = 128, 10, (2_000, 20_000)
KINDS = ("RGB", "RGB", "RGB", "RGB", "RGB", "RGB", "L", "CMYK", "P", "I;16")
Batches = Iterator[tuple[Tensor, Tensor]]
Decode = Callable[[str], Image.Image]


# -- the images -------------------------------------------------------------------------------------------------------


def write_images(folder: Path, count: int) -> None:
    """Write training images, and a test image of each class."""
    for number in range(CLASSES):
        for part in ("train", "test"):
            (folder / part / str(number)).mkdir(parents=True)
        write_image(folder / "test" / str(number) / "0", number)
    for number in range(count):
        write_image(folder / "train" / str(number % CLASSES) / f"{number:06}", number)


def write_image(file: Path, number: int) -> None:
    """Write an image of some size and kind: a smooth picture with a little noise."""
    rng, kind = np.random.default_rng(number), KINDS[number // CLASSES % len(KINDS)]
    width, height = int(rng.integers(60, 161)), int(rng.integers(50, 121))
    coarse = Image.fromarray(rng.integers(0, 256, (height // 12 + 2, width // 12 + 2, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) + rng.normal(0, 6, (height, width, 3))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if kind == "I;16":
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(file.with_suffix(".png"))
    elif kind == "P":
        image.convert("P").save(file.with_suffix(".png"), compress_level=1)
    else:
        image.convert(kind).save(file.with_suffix(".jpg"), quality=90)


# -- the two loops ----------------------------------------------------------------------------------------------------


class PlainDataset:
    """Image files and labels in lists, decoded and cropped one by one, as in anybody's script."""

    def __init__(self, files: ImageFiles, size: int, decode: Decode) -> None:
        rows = files.stored_rows(torch.arange(len(files)))
        self.paths = [files.stored.path(row) for row in rows.tolist()]
        self.labels = files.labels.tolist()
        self.size, self.decode = size, decode

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.decode(self.paths[index])
        box = random_box(*image.size, random)
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box).convert("RGB")
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(image)), self.labels[index]


def as_ours(path: str) -> Image.Image:
    """Decode as we do."""
    return decoded(Path(path).read_bytes(), path).image


def with_pillow(path: str) -> Image.Image:
    """Decode with Pillow alone."""
    with Image.open(path) as image:
        return image.convert("RGB")


def plain(files: ImageFiles, size: int, workers: int, decode: Decode) -> Batches:
    """Go through shuffled batches of a plain loop."""
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    for pixels, labels in DataLoader(PlainDataset(files, size, decode), BATCH, shuffle=True, num_workers=workers):
        yield normalized(pixels, mean, std), labels


def ours(files: ImageFiles, size: int, workers: int) -> Batches:
    """Go through the shuffled batches that a run trains on."""
    split = StreamedSplit(files, "made", View(size), workers)
    return (batch.content for batch in split.batches(BATCH, seed=0, augment=True))


def read(batches: Callable[[], Batches]) -> Callable[[], None]:
    """Go through all batches."""

    def work() -> None:
        for _ in batches():
            pass

    return work


def train(batches: Callable[[], Batches], model: str) -> Callable[[], None]:
    """Train on all batches, with SGD."""
    net = MODELS[model](num_classes=CLASSES).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)

    def work() -> None:
        for images, labels in batches():
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()

    return work


# -- rates ------------------------------------------------------------------------------------------------------------


def processor_time() -> float:
    """The processor's seconds that this process and the workers that ended took: what disturbs the machine is not in it."""
    return sum(os.times()[:4])


def measure_rates(title: str, variants: dict[str, Callable[[], None]], images: int, rounds: int) -> None:
    """Measure and print images per second, and per second of a processor; a first round does not count."""
    clocks = {"second": time.perf_counter, "processor's second": processor_time}
    found: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in variants} for clock in clocks}
    for counted in [False] + [True] * rounds:
        for name in random.sample(list(variants), len(variants)):
            began = {clock: read_clock() for clock, read_clock in clocks.items()}
            variants[name]()
            for clock, read_clock in clocks.items():
                if counted:
                    found[clock][name].append(images / (read_clock() - began[clock]))
    for clock, speeds in found.items():
        show(f"{title}, images a {clock}", speeds)


# -- memory -----------------------------------------------------------------------------------------------------------


def proportional(process: int) -> int:
    """The bytes of a process and of all that it started."""
    total, around = 0, Path("/proc") / str(process)
    try:
        for line in (around / "smaps_rollup").read_text().splitlines():
            total += 1024 * int(line.split()[1]) if line.startswith("Pss:") else 0
        children = [
            int(child) for task in (around / "task").iterdir() for child in (task / "children").read_text().split()
        ]
    except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        return total
    return total + sum(map(proportional, children))


def peak(work: Callable[[], None]) -> int:
    """The most bytes that this process and its workers take while they work, looked at twenty times a second."""
    most, done = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.05):
            most = max(most, proportional(os.getpid()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    done.set()
    watcher.join()
    return most


def memory(folder: str, size: int, workers: int, model: str) -> tuple[int, int]:
    """The bytes of an index and the peak of an epoch's training, both from nothing: called in a new process."""
    torch.set_num_threads(1)
    data = read_image_files(Path(folder))
    index = sum(part.nbytes for part in (data.pool.stored.paths, data.pool.stored.ends, data.pool.labels))
    return index, peak(train(lambda: ours(data.pool, size, workers), model))


def alone(folder: Path, *options: int | str) -> tuple[int, int]:
    """``memory`` in a process of its own."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        return executor.submit(memory, str(folder), *options).result()


def measure_memory(folders: dict[int, Path], rounds: int, size: int, workers: int, model: str) -> None:
    """Measure and print the memory of each folder, each several times."""
    found: dict[int, list[tuple[int, int]]] = {count: [] for count in folders}
    for _ in range(rounds):
        for count, folder in folders.items():
            found[count].append(alone(folder, size, workers, model))
    print(
        f"memory of an epoch's training, {workers} workers: MiB at the peak (least to most of {rounds}), index in bytes an image"
    )
    for count, values in found.items():
        peaks = [most / 2**20 for _, most in values]
        spread = f"{min(peaks):.1f} to {max(peaks):.1f}"
        print(f"  {count:>6,} images{statistics.median(peaks):>12.1f} ({spread}){values[0][0] / count:>10.1f}")


def main(
    rounds: int = 8,
    memory_rounds: int = 3,
    images: int = 2_000,
    size: int = 32,
    model: str = "resnet20",
    workers: int = 2,
) -> None:
    """Make images, measure, and print memory and rates.

    Args:
        rounds: how often each variant is timed.
        memory_rounds: how often the memory of each number of files is measured.
        images: that a variant goes through in a round.
        size: of the crops, in pixels.
        model: that is trained.
        workers: the most workers; rates are of none, and of each number up to it.
    """
    check_count("--rounds", rounds, minimum=FEWEST)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folders = {count: Path(place) / str(count) for count in SIZES}
        for count, folder in folders.items():
            write_images(folder, count)
        measure_memory(folders, memory_rounds, size, workers, model)
        data = read_image_files(folders[SIZES[-1]])
        chosen = data.pool.subset(torch.randperm(len(data.pool))[:images])
        for number in range(workers + 1):
            variants = {
                "plain loop": lambda number=number: plain(chosen, size, number, as_ours),
                "plain loop, Pillow alone": lambda number=number: plain(chosen, size, number, with_pillow),
                "ours": lambda number=number: ours(chosen, size, number),
            }
            title = f"{number} workers"
            measure_rates(
                f"reading, {title}", {name: read(batches) for name, batches in variants.items()}, images, rounds
            )
            work = {name: train(batches, model) for name, batches in variants.items()}
            measure_rates(f"training {model}, {title}", work, images, rounds)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, crops of {size}, {processor('cpu')}")


if __name__ == "__main__":
    tyro.cli(main)
