"""The published corruptions: pixel for pixel those of the scripts that made CIFAR-10-C and ImageNet-C, from the same draws."""

import functools
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image

from flatsparse.common.errors import InputError
from flatsparse.experiments.data.corruptions import CATEGORIES, CORRUPTIONS, EXTRA, MAIN, SEVERITIES, corrupt
from flatsparse.experiments.data.corruptions.arrays import floored, zoomed
from flatsparse.experiments.data.corruptions.strengths import SIDES, STRENGTHS, strength

GOLDEN = Path(__file__).parents[2] / "golden" / "corruptions.npz"
RANDOM = {"gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "glass_blur", "motion_blur"}
RANDOM |= {"snow", "frost", "fog", "elastic_transform", "spatter"}
# Those whose published strengths do not rise in all their parts: a second round of a narrower glass, ice that is added to
# less of the image, an elastic transform that shifts less and ripples more, a saturation that falls before it rises.
MIXED = {"glass_blur", "frost", "elastic_transform", "saturate"}


class Draws(np.random.RandomState):
    """The generator that the published scripts draw from, with the names of today's."""

    def integers(self, low, high=None, size=None):
        return self.randint(low, high, size)


def pattern(side):
    """Slopes, edges and grain, from whole numbers only."""
    y, x = np.indices((side, side)) * 256 // side
    color = np.stack([abs(2 * x - 255), x * y // 256, 255 - abs(x + y - 255)], -1)
    color = np.where(((x // 64 + y // 48) % 3 == 0)[..., None], color // 2 + 100, color)
    return (color + ((x * 7919 + y * 104729) % 23)[..., None]).clip(0, 255).astype(np.uint8)


@functools.cache
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@functools.cache
def pictures(side=32, channels=3):
    """Eight crops of a photograph."""
    photo = torch.from_numpy(load_sample_image("china.jpg")[:400, :640].copy()).float()
    crops = photo.unflatten(0, (2, 200)).unflatten(2, (4, 160)).permute(0, 2, 4, 1, 3).flatten(0, 1)
    small = F.interpolate(crops, (side, side), mode="area")[:, :channels]
    return small.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def distance(a, b):
    return float((a.float() - b.float()).square().mean())


def test_the_names_are_those_of_the_paper_each_in_a_category():
    assert list(CORRUPTIONS) == [*MAIN, *EXTRA]
    assert (len(MAIN), len(EXTRA)) == (15, 4)
    assert sorted(name for names in CATEGORIES.values() for name in names) == sorted(CORRUPTIONS)
    assert set(STRENGTHS) == set(CORRUPTIONS)
    assert {len(strengths) for sets in STRENGTHS.values() for strengths in sets} == {5}


# The arrays are the middle 16 x 16 pixels of ``pattern(side)`` at each severity, made by the functions of
# ``make_cifar_c.py``, ``make_imagenet_64_c.py`` and ``make_imagenet_c.py`` of hendrycks/robustness (8190fe3), with
# ``np.random.seed(severity)`` before each, under ImageMagick 6.9.11, OpenCV 5.0, scikit-image 0.26 and Pillow 13.
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - {"frost", "impulse_noise"}))
def test_pixels_are_those_of_the_published_scripts(name, side):
    image, middle = pattern(side)[None] / 255, slice(side // 2 - 8, side // 2 + 8)
    for severity in SEVERITIES:
        values = CORRUPTIONS[name](image, strength(name, severity, side, side), [Draws(severity)])[0, middle, middle]
        apart = floored(values).astype(int) - golden()[f"{side}-{name}"][severity - 1]
        level = abs(255 * values - np.rint(255 * values)) < 1e-6  # where the last bits of the published decide
        assert abs(apart).max() <= 1
        assert (apart[level] != 0).sum() < 0.15 * apart.size
        assert (apart[~level] != 0).sum() < 0.02 * apart.size


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize(("side", "channels"), [(32, 3), (64, 3), (32, 1), (8, 1)])
def test_every_severity_changes_images_and_most_more_than_the_one_before(name, side, channels):
    clean = pictures(side, channels)
    before = clean.clone()
    spoiled = [corrupt(clean, name, severity) for severity in SEVERITIES]
    assert all(image.shape == clean.shape and image.dtype == torch.uint8 for image in spoiled)
    assert torch.equal(clean, before)
    away = [distance(image, clean) for image in spoiled]
    if name == "saturate" and channels == 1:
        assert away == [0] * 5
        return
    if side == 8:  # a blur of less than a pixel may not reach a level
        assert away[4] > 0
        return
    assert min(away) > 0
    if name not in MIXED:
        assert all(after > 0.98 * before for before, after in itertools.pairwise(away))  # chance may bring two close
        assert away[0] < away[2] < away[4]
    elif name != "elastic_transform":
        assert away[4] > away[0]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_chance_follows_seed_name_severity_and_index_and_nothing_else(name):
    clean = pictures()
    torch.manual_seed(1)
    np.random.seed(1)
    first = corrupt(clean, name, 3, seed=5)
    torch.manual_seed(2)
    np.random.seed(2)
    assert torch.equal(first, corrupt(clean, name, 3, seed=5))
    assert torch.equal(first, corrupt(clean, name, 3, seed=6)) == (name not in RANDOM)
    alike = corrupt(clean[:1].repeat(2, 1, 1, 1), name, 3)
    assert torch.equal(alike[0], alike[1]) == (name not in RANDOM)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_the_same_in_any_batch(name, monkeypatch):
    clean = pictures()
    whole = corrupt(clean, name, 4)
    assert torch.equal(torch.cat([corrupt(clean[:3], name, 4), corrupt(clean[3:], name, 4, first=3)]), whole)
    monkeypatch.setattr("flatsparse.experiments.data.corruptions.apply.PIECE", 2 * clean[0].numel())
    assert torch.equal(corrupt(clean, name, 4), whole)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_may_be_higher_than_wide_and_none_may_be_given(name):
    tall = pictures(64)[:, :, 8:48].contiguous()
    assert corrupt(tall, name, 5).shape == tall.shape
    assert corrupt(tall[:0], name, 5).shape == tall[:0].shape


def test_impulse_noise_sets_the_stated_share_of_values():
    grey = torch.full((50, 32, 32, 3), 128, dtype=torch.uint8)
    salt = corrupt(grey, "impulse_noise", 5)  # 0.07 for images of 32 pixels
    assert float((salt == 255).float().mean()) == pytest.approx(0.035, rel=0.05)
    assert float((salt == 0).float().mean()) == pytest.approx(0.035, rel=0.05)
    assert set(salt.unique().tolist()) == {0, 128, 255}


def test_frost_lightens_darkens_and_blends_as_stated():
    black, white = torch.zeros(20, 64, 64, 3, dtype=torch.uint8), torch.full((20, 64, 64, 3), 255, dtype=torch.uint8)
    ice = corrupt(black, "frost", 5).float() / (0.55 * 255)  # what is added
    kept = corrupt(white, "frost", 5).float() / 255
    assert 0.4 < float(ice.mean()) < 0.8
    assert float(ice.max()) <= 1 + 1e-6
    assert torch.allclose(kept, (0.7 + 0.55 * ice).clamp(max=1), atol=2.1 / 255)


@pytest.mark.parametrize(
    "name", ["gaussian_blur", "defocus_blur", "motion_blur", "zoom_blur", "pixelate", "glass_blur"]
)
def test_a_filter_leaves_an_even_image_as_it_is(name):
    even = torch.full((2, 32, 32, 3), 77, dtype=torch.uint8)
    assert torch.equal(corrupt(even, name, 5), even)


def test_a_zoom_by_one_is_the_image_and_by_two_its_middle():
    image = np.arange(64.0).reshape(1, 8, 8, 1)
    assert np.array_equal(zoomed(image, 1), image)
    twice = zoomed(image, 2)[0, :, :, 0]
    assert np.allclose([twice[0, 0], twice[-1, -1]], [image[0, 2, 2, 0], image[0, 5, 5, 0]])


def test_other_sizes_take_the_strengths_of_the_nearest_published_one():
    side = {side: strength("jpeg_compression", 1, side, side) for side in (8, 32, 45, 46, 64, 119, 120, 224, 500)}
    assert side == {
        8: (80,),
        32: (80,),
        45: (80,),
        46: (65,),
        64: (65,),
        119: (65,),
        120: (25,),
        224: (25,),
        500: (25,),
    }
    assert strength("jpeg_compression", 1, 32, 500) == (80,)


@pytest.mark.parametrize(
    ("images", "name", "severity", "message"),
    [
        (pictures(), "contrasts", 1, "unknown corruption 'contrasts'"),
        (pictures(), "contrast", 6, "severity 6"),
        (pictures().float(), "contrast", 1, "torch.float32"),
        (pictures()[..., :2], "contrast", 1, "C = 1 or 3"),
        (pictures()[0], "contrast", 1, r"wanted uint8 \(N, H, W, C\)"),
    ],
)
def test_what_cannot_be_corrupted_is_refused(images, name, severity, message):
    with pytest.raises(InputError, match=message):
        corrupt(images, name, severity)
