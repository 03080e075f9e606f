import numpy as np
import pytest
import torch

from flatsparse.errors import InputError
from flatsparse.lab import data as lab_data
from flatsparse.lab.data import DataSet, Images, batches, split, with_label_noise


def toy(n=40, side=6):
    source = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (n, side, side, 3), generator=source, dtype=torch.uint8)
    everything = Images(images, torch.arange(n) % 4)
    return DataSet("toy", everything, everything.take(torch.arange(5)), classes=4, augmented=True, validation_size=10)


def whole(**changes):
    return split(toy(), **{"train_size": None, "validation_size": None, "label_noise": 0.0, "seed": 0, **changes})


def identity(images):
    return {image.numpy().tobytes() for image in images.images}


def test_validation_is_held_out_and_the_same_for_all_seeds():
    first, second = whole(seed=0, train_size=20), whole(seed=1, train_size=20)
    assert identity(first.validation) == identity(second.validation)
    assert not identity(first.train) & identity(first.validation)
    assert identity(first.train) != identity(second.train)
    assert len(whole().train) == 30


@pytest.mark.parametrize("sizes", [(31, None), (1, 40), (0, None), (5, -1)])
def test_a_pool_that_is_too_small_is_refused_in_one_line(sizes):
    with pytest.raises(InputError, match="cannot take") as caught:
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
    assert torch.equal(clean.validation.labels, noisy.validation.labels)
    assert torch.equal(clean.test.labels, noisy.test.labels)
    assert int((clean.train.labels != noisy.train.labels).sum()) == 15


def test_batches_are_normalized_and_the_order_follows_seed_and_epoch():
    splits = whole()
    images = torch.cat([x for x, _ in batches(splits.train, splits, size=7)])
    assert torch.allclose(images.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(images.std(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-5)

    def order(**how):
        return torch.cat([y for _, y in batches(splits.train, splits, size=7, **how)]).tolist()

    assert order() == splits.train.labels.tolist()
    assert order(seed=0, epoch=1) == order(seed=0, epoch=1)
    assert order(seed=0, epoch=1) != order(seed=0, epoch=2)
    assert sorted(order(seed=0)) == sorted(order())


def test_augmentation_is_a_padded_crop_and_a_flip():
    """The plain form: every augmented image must be one of its own 9·9·2 crops."""
    splits = whole()
    one = splits.train.take(torch.arange(8))
    plain = torch.cat([x for x, _ in batches(one, splits, size=8)])
    (augmented, labels), *_ = batches(one, splits, size=8, augment=True, seed=5)
    black = -splits.mean / splits.std
    canvas = black.view(1, 3, 1, 1).expand(8, 3, 14, 14).clone()
    canvas[:, :, 4:10, 4:10] = plain
    crops = [canvas[:, :, i : i + 6, j : j + 6] for i in range(9) for j in range(9)]
    crops += [crop.flip(3) for crop in crops]
    for image, label in zip(augmented, labels, strict=True):
        matches = [n for crop in crops for n in range(8) if torch.allclose(crop[n], image, atol=1e-5)]
        assert matches
        assert all(one.labels[n] == label for n in matches[:1])


def test_digits_are_the_real_scans_apart_from_their_test():
    digits = lab_data.load("digits")
    assert (len(digits.pool), len(digits.test)) == (1000, 797)
    assert digits.pool.images.shape[1:] == (8, 8, 1)
    assert digits.pool.images.max() == 255
    assert len(digits.pool.labels.unique()) == 10


def test_an_unknown_data_set_names_the_nearest():
    with pytest.raises(InputError, match="cifar10"):
        lab_data.load("cifar-10")


def test_a_missing_data_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="absent"):
        lab_data.load("cifar10", tmp_path / "absent")


def write_cifar(folder, n=20, spoil=None):
    import pickle

    folder.mkdir()
    for index, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        pixels = np.random.default_rng(index).integers(0, 256, (n, 3072), dtype=np.uint8)
        content = pickle.dumps({b"data": pixels, b"labels": [i % 10 for i in range(n)]}, protocol=2)
        (folder / name).write_bytes(spoil(content) if spoil and name == "data_batch_3" else content)


def test_the_classic_cifar_folder_is_read_in_order(tmp_path):
    write_cifar(tmp_path / "cifar-10-batches-py")
    found = lab_data.load("cifar10", tmp_path)
    first = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
    assert (len(found.pool), len(found.test)) == (100, 20)
    assert np.array_equal(found.pool.images[0].numpy(), first[0].reshape(3, 32, 32).transpose(1, 2, 0))


def test_cifar_parquet_is_read_when_there_is_no_classic_folder(tmp_path):
    import datasets

    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    rows = datasets.Dataset.from_dict({"img": list(pixels), "label": list(range(6))}, features=features)
    (tmp_path / "cifar10").mkdir()
    for part in ("train", "test"):
        rows.to_parquet(tmp_path / "cifar10" / f"{part}-00000-of-00001.parquet")
    found = lab_data.load("cifar10", tmp_path)
    assert np.array_equal(found.pool.images.numpy(), pixels)
    assert found.test.labels.tolist() == list(range(6))


@pytest.mark.parametrize("spoil", [lambda b: b[:200], lambda b: b"cos\nsystem\n(S'echo hi'\ntR.", lambda b: b""])
def test_a_damaged_or_hostile_batch_is_named_and_never_run(tmp_path, spoil):
    write_cifar(tmp_path / "cifar-10-batches-py", spoil=spoil)
    with pytest.raises(InputError, match="data_batch_3"):
        lab_data.load("cifar10", tmp_path)
