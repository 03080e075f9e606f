"""Views: random crops are as the paper says, evaluation shows the middle, and both follow what they are told to alone."""

import math
import random

import numpy as np
import pytest
from PIL import Image

from flatsparse.common.errors import InputError
from flatsparse.experiments.data.views import View, evaluation_view, random_box, training_view


def scene(width, height, mode="RGB"):
    """A smooth picture, whose pixels tell where they are from."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack([across, down, (across + down) / 2], 2).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def plain_box(width, height, source):
    """The random crop in its plain form: area and aspect are drawn up to ten times, until they fit."""
    for _ in range(10):
        area = width * height * source.uniform(0.08, 1)
        aspect = math.exp(source.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if w <= width and h <= height:
            left, top = source.randint(0, width - w), source.randint(0, height - h)
            return left, top, left + w, top + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def measured(boxes, width, height):
    """Share of the area, logarithm of the aspect, and middle of each box."""
    left, top, right, bottom = np.array(boxes, float).T
    across, down = right - left, bottom - top
    return np.stack(
        [
            across * down / (width * height),
            np.log(across / down),
            (left + right) / 2 / width,
            (top + bottom) / 2 / height,
        ]
    )


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (64, 64), (400, 100)])
def test_boxes_are_distributed_as_those_of_the_plain_form(width, height):
    ours, plain = (random.Random(seed) for seed in (1, 2))
    count = 4000
    mine = measured([random_box(width, height, ours) for _ in range(count)], width, height)
    theirs = measured([plain_box(width, height, plain) for _ in range(count)], width, height)
    for one, other in zip(mine, theirs, strict=True):
        error = np.hypot(one.std(), other.std()) / count**0.5
        assert abs(one.mean() - other.mean()) < 4 * error + 1e-9
        assert np.quantile(one, [0.1, 0.5, 0.9]) == pytest.approx(np.quantile(other, [0.1, 0.5, 0.9]), abs=0.05)


def test_boxes_lie_in_the_image_and_reach_all_of_its_allowed_areas_and_aspects():
    source = random.Random(0)
    boxes = [random_box(500, 375, source) for _ in range(4000)]
    assert all(0 <= left < right <= 500 and 0 <= top < bottom <= 375 for left, top, right, bottom in boxes)
    area, aspect, *_ = measured(boxes, 500, 375)
    assert area.min() == pytest.approx(0.08, abs=0.01)
    assert area.max() > 0.97
    assert np.exp(aspect.min()) == pytest.approx(3 / 4, abs=0.02)
    assert np.exp(aspect.max()) == pytest.approx(4 / 3, abs=0.02)
    assert {box[0] for box in boxes} >= set(range(100))  # each corner has its chance


@pytest.mark.parametrize(
    ("size", "box"), [((1000, 10), (493, 0, 506, 10)), ((10, 1000), (0, 493, 10, 506)), ((1, 1), (0, 0, 1, 1))]
)
def test_of_an_image_that_no_try_fits_the_largest_middle_is_taken(size, box):
    assert {random_box(*size, random.Random(seed)) for seed in range(200)} == {box}


def test_after_ten_tries_the_middle_is_taken():
    class Full:
        """Draws the whole area, at an aspect that does not fit, and counts."""

        drawn = 0

        def random(self):
            self.drawn += 1
            return 1.0 - 2**-53

    source = Full()
    assert random_box(300, 300, source) == (0, 0, 300, 300)
    assert source.drawn == 2 * 10


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_training_view_is_the_crop_resized_and_flipped_in_half_of_the_cases(mode):
    image, view, flips = scene(120, 90, mode), View(32), 0
    for row in range(100):
        found = training_view(image, view, 0, 1, row)
        assert (found.shape, found.dtype) == ((32, 32, 3), np.uint8)
        flipped = found[16, 0, 0] > found[16, -1, 0]  # the picture's red grows to the right
        flips += flipped
        upright = (found[:, ::-1] if flipped else found).astype(int)
        low, high = upright[16, [0, -1], 0] / 255
        assert 0 <= low < high <= 1
    assert 30 < flips < 70


def test_a_training_view_follows_its_path_alone():
    image, view = scene(120, 90), View(32)
    first = training_view(image, view, 0, 1, 2)
    random.seed(5)
    np.random.seed(5)
    assert (training_view(image, view, 0, 1, 2) == first).all()
    others = [training_view(image, view, *path) for path in ((1, 1, 2), (0, 2, 2), (0, 1, 3))]
    assert all((other != first).any() for other in others)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (224, 224), (60, 50), (31, 400), (257, 511), (1, 1)])
@pytest.mark.parametrize("view", [View(224), View(64), View(64, 64), View(33, 100)])
def test_an_evaluation_view_is_the_middle_of_the_resized_image(size, view):
    image = scene(*size)
    shorter = view.resize or round(view.size * 256 / 224)
    resized = image.resize([shorter * side // min(size) for side in size], Image.Resampling.BILINEAR)
    left, top = (round((side - view.size) / 2) for side in resized.size)
    plain = np.asarray(resized.crop((left, top, left + view.size, top + view.size)))
    found = evaluation_view(image, view)
    assert found.shape == plain.shape == (view.size, view.size, 3)
    assert np.abs(found.astype(int) - plain).max() <= 1
    assert (evaluation_view(image, view) == found).all()


def test_grey_becomes_three_equal_channels():
    found = evaluation_view(scene(80, 70, "L"), View(32))
    assert (found[..., 0] == found[..., 1]).all()
    assert (found[..., 0] == found[..., 2]).all()
    assert len(np.unique(found)) > 10


def test_the_shorter_side_is_256_for_224():
    assert [View(size).shorter_side for size in (224, 64, 32, 160)] == [256, 73, 37, 183]
    assert View(64, 64).shorter_side == 64


@pytest.mark.parametrize(
    ("options", "told"),
    [((0,), "--image-size 0"), ((-3,), "--image-size -3"), ((64, 63), "--resize 63"), ((64, 0), "--resize 0")],
)
def test_sizes_that_cannot_be_are_refused(options, told):
    with pytest.raises(InputError, match=told):
        View(*options)
