"""Corrupted images, and how a finished run does on them."""

import functools
import statistics

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image

from flatsparse.common.errors import InputError
from flatsparse.experiments.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from flatsparse.experiments.robustness import robustness
from flatsparse.experiments.run.config import RunConfig
from flatsparse.experiments.run.load import load_run
from flatsparse.experiments.run.loop import train


@functools.cache
def pictures(side=32, channels=3):
    """Eight crops of a photograph."""
    photo = torch.from_numpy(load_sample_image("china.jpg")[:400, :640].copy()).float()
    crops = photo.unflatten(0, (2, 200)).unflatten(2, (4, 160)).permute(0, 2, 4, 1, 3).flatten(0, 1)
    small = F.interpolate(crops, (side, side), mode="area")[:, :channels]
    return small.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def distance(a, b):
    return float((a.float() - b.float()).square().mean())


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize(("side", "channels"), [(32, 3), (64, 3), (8, 1)])
def test_each_severity_is_worse_than_the_one_before(name, side, channels):
    clean = pictures(side, channels)
    before = clean.clone()
    spoiled = [corrupt(clean, name, severity) for severity in SEVERITIES]
    assert all(image.shape == clean.shape and image.dtype == torch.uint8 for image in spoiled)
    away = [distance(image, clean) for image in spoiled]
    assert away == sorted(away)
    assert away[0] < away[2] < away[4]  # on a few pixels two neighbours may be equal
    assert torch.equal(clean, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_chance_follows_the_seed_and_nothing_else(name):
    clean = pictures()
    torch.manual_seed(1)
    first = corrupt(clean, name, 3, seed=5)
    torch.manual_seed(2)
    assert torch.equal(first, corrupt(clean, name, 3, seed=5))
    assert torch.equal(first, corrupt(clean, name, 3, seed=6)) == ("noise" not in name)


def test_noise_has_its_stated_size():
    grey = torch.full((50, 32, 32, 3), 128, dtype=torch.uint8)
    moved = corrupt(grey, "gaussian_noise", 2).float() / 255 - 128 / 255
    assert float(moved.std()) == pytest.approx(0.08, rel=0.02)
    salt = corrupt(grey, "impulse_noise", 5)
    assert float((salt == 255).float().mean()) == pytest.approx(0.1, rel=0.05)
    assert float((salt == 0).float().mean()) == pytest.approx(0.1, rel=0.05)
    shot = corrupt(grey, "shot_noise", 2).float() / 255
    assert float(shot.var()) == pytest.approx(float(shot.mean()) / 60, rel=0.05)


@pytest.mark.parametrize("name", ["blur", "motion_blur", "pixelate"])
def test_a_filter_leaves_an_even_image_as_it_is(name):
    even = torch.full((2, 32, 32, 3), 77, dtype=torch.uint8)
    assert torch.equal(corrupt(even, name, 5), even)


def test_motion_blur_is_a_plain_mean_along_rows_only():
    columns = torch.zeros(1, 100, 100, 1, dtype=torch.uint8)
    columns[:, :, 50] = 255
    spread = corrupt(columns, "motion_blur", 2)[0, 0, :, 0]  # reaches 5 to each side
    assert (spread > 0).nonzero().flatten().tolist() == list(range(45, 56))
    assert set(spread[45:56].tolist()) == {round(255 / 11)}
    assert torch.equal(corrupt(columns.transpose(1, 2), "motion_blur", 5), columns.transpose(1, 2))


def test_robustness_is_the_accuracy_on_the_same_corrupted_images(tmp_path):
    train(RunConfig.of(train_size=500, validation_size=50, epochs=6, sparsity=0.5, sharpness="s2sam"), tmp_path / "run")
    finished = load_run(tmp_path / "run")
    found = robustness(finished)
    assert found == robustness(finished)
    assert found["clean"] == finished.result.test_accuracy
    assert set(found["by"]) == set(CORRUPTIONS)
    assert found["mean"] == pytest.approx(statistics.fmean(x for row in found["by"].values() for x in row))
    assert found["by"]["gaussian_noise"][4] < found["clean"]
    test = finished.task.splits.test
    images = corrupt(test.samples.images, "contrast", 5)
    mean, std = 255 * test.mean, 255 * test.std
    guesses = finished.model(((images - mean) / std).permute(0, 3, 1, 2)).argmax(1)
    right = (guesses == test.samples.labels).float().mean()
    assert found["by"]["contrast"][4] == pytest.approx(100 * float(right), abs=0.13)  # one image of 797


def test_what_cannot_be_corrupted_is_refused():
    with pytest.raises(InputError, match="unknown corruption 'contrasts'"):
        corrupt(pictures(), "contrasts", 1)
    with pytest.raises(InputError, match="severity 6"):
        corrupt(pictures(), "contrast", 6)
