"""Splits of images in files: the same batches whoever reads them, of any size and kind of image."""

import dataclasses
import os

import numpy as np
import pytest
import torch
from PIL import Image

from flatsparse.common.errors import InputError
from flatsparse.experiments.data.arrays import ArraySplit
from flatsparse.experiments.data.file_sets import read_image_files
from flatsparse.experiments.data.image_files import ImageFiles, file_list
from flatsparse.experiments.data.samples import Samples
from flatsparse.experiments.data.streamed import MEAN, STD, StreamedSplit, streamed_splits
from flatsparse.experiments.data.views import View, evaluation_view, training_view
from tests.experiments.images import write_parts

MIXED = ("RGB", "L", "CMYK", "P", "I;16", "RGBA", "turned")
CHOICE = {"train_size": None, "validation_size": None, "label_noise": 0.0, "seed": 0}


def write_image(file, number):
    """An image of some size and mode."""
    mode = MIXED[number % len(MIXED)]
    width, height = 20 + 7 * (number % 5), 30 - 5 * (number % 4)
    rng = np.random.default_rng(number)
    if mode == "I;16":
        Image.fromarray(rng.integers(0, 2**16, (height, width), dtype=np.uint16)).save(file.with_suffix(".png"))
        return
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    if mode == "turned":
        exif = Image.Exif()
        exif[274] = 6  # lying on its side
        image.save(file.with_suffix(".jpg"), exif=exif)
    else:
        image.convert(mode).save(file.with_suffix(".jpg" if mode in ("L", "CMYK") else ".png"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of mixed sizes and modes, more than are read without workers."""
    place = tmp_path_factory.mktemp("mixed")
    for part, count in (("train", 180), ("test", 20)):
        for number, kind in enumerate(("cat", "dog")):
            (place / part / kind).mkdir(parents=True)
            for image in range(count):
                write_image(place / part / kind / f"{image:03}", 2 * image + number)
    return place


@pytest.fixture(scope="module")
def data(folder):
    return read_image_files(folder)


def split_of(data, *, workers=0, size=16):
    return StreamedSplit(data.pool, "mixed (train)", View(size), workers)


def contents(batches):
    return [(batch.content[0], batch.content[1], batch.samples, batch.whole) for batch in batches]


def same(one, other):
    return len(one) == len(other) and all(
        a[0].equal(b[0]) and a[1].equal(b[1]) and a[2:] == b[2:] for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(data, workers):
    options = {"seed": 3, "epoch": 2, "augment": True}
    alone = contents(split_of(data).batches(50, **options))
    assert same(alone, contents(split_of(data, workers=workers).batches(50, **options)))
    assert [part[2] for part in alone] == [50] * 7 + [10]


@pytest.mark.parametrize("size", [50, 51])
def test_shards_of_two_processes_are_the_batches_of_one(data, size):
    options = {"seed": 3, "epoch": 2, "augment": True}
    split = split_of(data)
    whole = list(split.batches(size, **options))
    parts = [list(split.batches(size, shard=slice(rank, None, 2), **options)) for rank in range(2)]
    for batch, even, odd in zip(whole, *parts, strict=True):
        assert batch.whole == even.whole == odd.whole == even.samples + odd.samples
        for number in range(2):
            assert batch.content[number][::2].equal(even.content[number])
            assert batch.content[number][1::2].equal(odd.content[number])


def test_a_process_without_a_share_of_the_last_batch_gets_an_empty_one(data):
    split = split_of(data).first(9)
    *_, last = split.batches(8, seed=0, shard=slice(1, None, 2))
    assert (last.samples, last.whole) == (0, 1)
    assert last.content[0].shape == (0, 3, 16, 16)


def test_order_and_crops_follow_seed_and_epoch(data):
    split = split_of(data)
    one, again, epoch, seed = (
        contents(split.batches(64, seed=seed, epoch=epoch, augment=True))
        for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))
    )
    assert same(one, again)
    assert not same(one, epoch)
    assert not same(one, seed)


def test_an_image_s_crop_follows_itself_and_not_its_place(data):
    """The same image in another subset, or in another batch, is cropped as before."""
    split = split_of(data)
    chosen = torch.tensor([5, 300, 17])
    options = {"seed": 0, "epoch": 1, "augment": True}

    def pictures(split, size):
        return {image.numpy().tobytes() for images, *_ in contents(split.batches(size, **options)) for image in images}

    assert pictures(split.subset(chosen), 2) < pictures(split, 64)


def test_without_a_seed_the_order_is_the_data_s_own_and_the_middle_is_shown(data):
    split = split_of(data)
    found = contents(split.batches(64))
    assert same(found, contents(split.batches(64)))
    assert torch.cat([part[1] for part in found]).equal(data.pool.labels)
    first = torch.cat([part[0] for part in contents(split.first(5).batches(2))])
    assert first.equal(found[0][0][:5])
    with Image.open(data.pool.stored.path(0)) as image:
        plain = torch.tensor(evaluation_view(image.convert("RGB"), View(16))).float() / 255
    assert torch.allclose(first[0].permute(1, 2, 0), (plain - torch.tensor(MEAN)) / torch.tensor(STD), atol=1e-5)


def test_a_batch_is_normalized_in_channels_last_order(data):
    (images, labels), samples, whole = next(split_of(data).batches(7, seed=0, augment=True))
    assert images.shape == (7, 3, 16, 16)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert (labels.dtype, samples, whole) == (torch.int64, 7, 7)
    low, high = -torch.tensor(MEAN) / torch.tensor(STD), (1 - torch.tensor(MEAN)) / torch.tensor(STD)
    assert (images.amin((0, 2, 3)) >= low - 1e-5).all()
    assert (images.amax((0, 2, 3)) <= high + 1e-5).all()


def test_crops_are_those_of_the_row_in_the_files(data):
    split = split_of(data).subset(torch.tensor([14]))  # RGB in a PNG file
    (images, _), *_ = next(split.batches(1, seed=4, epoch=3, augment=True))
    with Image.open(data.pool.stored.path(14)) as image:
        plain = torch.tensor(training_view(image.convert("RGB"), View(16), 4, 3, 14)).float() / 255
    assert torch.allclose(images[0].permute(1, 2, 0), (plain - torch.tensor(MEAN)) / torch.tensor(STD), atol=1e-5)


def test_streamed_and_held_in_memory_are_one_without_augmentation(tmp_path):
    data = read_image_files(
        tmp_path / write_parts(tmp_path / "pets", {"train": ("cat", "dog"), "test": ("cat", "dog")})
    )
    streamed = StreamedSplit(data.pool, "pets", View(8, 8))
    pixels = [np.asarray(Image.open(data.pool.stored.path(row))) for row in range(6)]
    held = ArraySplit(
        Samples(torch.from_numpy(np.stack(pixels)), data.pool.labels), torch.tensor(MEAN), torch.tensor(STD)
    )
    for seed in (None, 0):
        assert same(contents(streamed.batches(4, seed=seed)), contents(held.batches(4, seed=seed)))
    assert (streamed.shape, streamed.steps(4), len(streamed)) == (held.samples.shape, held.steps(4), len(held))


def test_labels_are_there_without_an_image_being_read(tmp_path):
    place = tmp_path / write_parts(tmp_path / "pets", {"train": ("cat", "dog"), "test": ("cat", "dog")})
    data = read_image_files(place)
    for row in range(6):
        os.unlink(data.pool.stored.path(row))
    splits = streamed_splits(data, View(8), 0, train_size=4, validation_size=1, label_noise=0.5, seed=0)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (4, 1, 6)
    right = data.pool.labels[splits.train.files.rows]
    assert int((splits.train.labels != right).sum()) == 2
    with pytest.raises(InputError):
        next(splits.train.batches(2))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "damage", [lambda content: content[: len(content) // 2], lambda content: b"no image", lambda _: b""]
)
def test_a_damaged_file_is_named(folder, workers, damage, tmp_path):
    data = read_image_files(folder)
    file = data.pool.stored.path(200)
    with open(file, "rb") as stream:
        content = stream.read()
    try:
        with open(file, "wb") as stream:
            stream.write(damage(content))
        with pytest.raises(InputError) as caught:
            list(split_of(data, workers=workers).batches(50, seed=0, augment=True))
    finally:
        with open(file, "wb") as stream:
            stream.write(content)
    assert f"{file} is not a whole image" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_loop_may_be_left_early(data):
    for _ in split_of(data, workers=2).batches(10, seed=0):
        break
    batches = split_of(data, workers=2).batches(10, seed=0)
    next(batches)
    batches.close()
    assert len(contents(split_of(data, workers=2).batches(200, seed=0))) == 2


def test_splits_are_views_of_one_index(data):
    splits = streamed_splits(data, View(16), 2, **CHOICE)
    assert len(splits.train) + len(splits.validation) == 360
    assert splits.train.files.stored is splits.validation.files.stored
    assert [part.name for part in (splits.train, splits.test)] == [f"{data.name} (train)", f"{data.name} (test)"]
    assert splits.to(torch.device("cpu")).train.workers == 2
    assert splits.train.at_once(1000) == len(splits.train)
    assert splits.train.measured() is splits.train
    assert dataclasses.replace(splits.train, view=View(224)).at_once(1000) == 81


def test_of_more_than_50_000_images_the_first_are_measured():
    files = ImageFiles(file_list("train", map(str, range(50_001))), torch.arange(50_001))
    split = StreamedSplit(files.subset(torch.arange(50_000, -1, -1)), "many", View(8))
    assert split.measured().labels.equal(torch.arange(50_000, 0, -1))
    assert [split.smallest(size) for size in (1, 1000, 60_000)] == [1, 1, 50_001]


def test_what_a_run_draws_is_not_touched(data):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    list(split_of(data, workers=2).batches(100, seed=0, augment=True))
    list(split_of(data).batches(100, seed=0, augment=True))
    assert torch.get_rng_state().equal(state)
