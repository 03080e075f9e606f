import pytest
import torch

from flatsparse.common.errors import InputError
from flatsparse.experiments.data.samples import DataSet, Samples, at_once
from flatsparse.experiments.data.splits import split, with_label_noise


def toy(n=40, side=6):
    source = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (n, side, side, 3), generator=source, dtype=torch.uint8)
    everything = Samples(images, torch.arange(n) % 4)
    return DataSet("toy", everything, everything.take(torch.arange(5)), classes=4, augmented=True, validation_size=10)


def whole(**changes):
    return split(toy(), **{"train_size": None, "validation_size": None, "label_noise": 0.0, "seed": 0, **changes})


def identity(images):
    return {image.numpy().tobytes() for image in images.samples.images}


def test_validation_is_held_out_and_the_same_for_all_seeds():
    first, second = whole(seed=0, train_size=20), whole(seed=1, train_size=20)
    assert identity(first.validation) == identity(second.validation)
    assert not identity(first.train) & identity(first.validation)
    assert identity(first.train) != identity(second.train)
    assert len(whole().train) == 30


@pytest.mark.parametrize("sizes", [(31, None), (1, 40), (0, None), (5, -1)])
def test_a_pool_that_is_too_small_is_refused_in_one_line(sizes):
    with pytest.raises(InputError, match=r"cannot (take|hold out)") as caught:
        whole(train_size=sizes[0], validation_size=sizes[1])
    assert "\n" not in str(caught.value)


def test_label_noise_makes_exactly_the_fraction_wrong_and_nothing_else():
    labels = torch.arange(1000) % 10
    noisy = with_label_noise(labels, 0.2, 10, seed=3)
    assert int((noisy != labels).sum()) == 200
    assert noisy.min() >= 0
    assert noisy.max() <= 9
    assert torch.equal(noisy, with_label_noise(labels, 0.2, 10, seed=3))
    assert not torch.equal(noisy, with_label_noise(labels, 0.2, 10, seed=4))


def test_noise_touches_training_labels_only():
    clean, noisy = whole(), whole(label_noise=0.5)
    assert torch.equal(clean.validation.samples.labels, noisy.validation.samples.labels)
    assert torch.equal(clean.test.samples.labels, noisy.test.samples.labels)
    assert int((clean.train.samples.labels != noisy.train.samples.labels).sum()) == 15


def test_batches_are_normalized_and_the_order_follows_seed_and_epoch():
    splits = whole()
    images = torch.cat([batch.content[0] for batch in splits.train.batches(7)])
    assert torch.allclose(images.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(images.std(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-5)

    def order(**how):
        return torch.cat([batch.content[1] for batch in splits.train.batches(7, **how)]).tolist()

    assert order() == splits.train.samples.labels.tolist()
    assert order(seed=0, epoch=1) == order(seed=0, epoch=1)
    assert order(seed=0, epoch=1) != order(seed=0, epoch=2)
    assert sorted(order(seed=0)) == sorted(order())


def test_augmentation_is_a_padded_crop_and_a_flip():
    """The plain form: every augmented image must be one of its own 9·9·2 crops."""
    splits = whole()
    one = splits.train.first(8)
    plain = next(one.batches(8)).content[0]
    augmented, labels = next(one.batches(8, augment=True, seed=5)).content
    black = -one.mean / one.std
    canvas = black.view(1, 3, 1, 1).expand(8, 3, 14, 14).clone()
    canvas[:, :, 4:10, 4:10] = plain
    crops = [canvas[:, :, i : i + 6, j : j + 6] for i in range(9) for j in range(9)]
    crops += [crop.flip(3) for crop in crops]
    for image, label in zip(augmented, labels, strict=True):
        matches = [n for crop in crops for n in range(8) if torch.allclose(crop[n], image, atol=1e-5)]
        assert matches
        assert all(one.samples.labels[n] == label for n in matches[:1])


def test_splits_share_the_memory_of_their_set():
    data = toy()
    splits = split(data, train_size=None, validation_size=None, label_noise=0.5, seed=0)
    for part in (splits.train, splits.validation):
        assert part.samples.stored.data_ptr() == data.pool.stored.data_ptr()
    train = splits.train.samples
    again = train.subset(torch.tensor([3, 1]))
    assert torch.equal(again.images, train.images[[3, 1]])
    assert torch.equal(again.take(torch.tensor([1])).images, train.images[[1]])
    assert torch.equal(again.labels, train.labels[[3, 1]])


def test_training_needs_no_second_copy_of_the_images(monkeypatch):
    """The largest thing that is made on the way is a batch."""
    splits = whole()
    made = []
    pad = torch.nn.functional.pad
    monkeypatch.setattr(
        torch.nn.functional, "pad", lambda images, *rest: made.append(len(images)) or pad(images, *rest)
    )
    list(splits.train.batches(7, augment=True, seed=0))
    assert max(made) == 7


@pytest.mark.parametrize(
    ("shape", "most", "wanted"),
    [
        ((8, 8, 1), 1000, 1000),
        ((32, 32, 3), 1000, 1000),
        ((64, 64, 3), 1000, 1000),
        ((224, 224, 3), 1000, 81),
        ((224, 224, 3), 40, 3),
        ((4000, 3000, 3), 1000, 1),
    ],
)
def test_the_larger_images_are_the_fewer_are_computed_at_once(shape, most, wanted):
    assert at_once(Samples(torch.empty(0, *shape), torch.empty(0)), most) == wanted
