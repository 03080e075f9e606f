import io
import pickle

import numpy as np
import pytest
from PIL import Image

from flatsparse.common.errors import InputError
from flatsparse.experiments.data.sources import load, slug


def test_digits_are_the_real_scans_apart_from_their_test():
    digits = load("digits")
    assert (len(digits.pool), len(digits.test)) == (1000, 797)
    assert digits.pool.images.shape[1:] == (8, 8, 1)
    assert digits.pool.images.max() == 255
    assert len(digits.pool.labels.unique()) == 10


def test_an_unknown_data_set_names_the_nearest():
    with pytest.raises(InputError, match="cifar10"):
        load("cifar-10")


def test_a_missing_data_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="absent"):
        load("cifar10", tmp_path / "absent")


def write_cifar(folder, n=20, spoil=None):
    folder.mkdir()
    for index, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        pixels = np.random.default_rng(index).integers(0, 256, (n, 3072), dtype=np.uint8)
        content = pickle.dumps({b"data": pixels, b"labels": [i % 10 for i in range(n)]}, protocol=2)
        (folder / name).write_bytes(spoil(content) if spoil and name == "data_batch_3" else content)


def test_the_classic_cifar_folder_is_read_in_order(tmp_path):
    write_cifar(tmp_path / "cifar-10-batches-py")
    found = load("cifar10", tmp_path)
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
    found = load("cifar10", tmp_path)
    assert np.array_equal(found.pool.images.numpy(), pixels)
    assert found.test.labels.tolist() == list(range(6))


@pytest.mark.parametrize("spoil", [lambda b: b[:200], lambda b: b"cos\nsystem\n(S'echo hi'\ntR.", lambda b: b""])
def test_a_damaged_or_hostile_batch_is_named_and_never_run(tmp_path, spoil):
    write_cifar(tmp_path / "cifar-10-batches-py", spoil=spoil)
    with pytest.raises(InputError, match="data_batch_3"):
        load("cifar10", tmp_path)


def test_cifar100_is_read_from_its_classic_folder(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for part in ("train", "test"):
        content = {b"data": np.zeros((200, 3072), np.uint8), b"fine_labels": [i % 100 for i in range(200)]}
        (folder / part).write_bytes(pickle.dumps(content, protocol=2))
    found = load("cifar100", tmp_path)
    assert (found.classes, len(found.pool), len(found.test)) == (100, 200, 200)


# -- folders of arrays ------------------------------------------------------------------------------------------------


def write_arrays(folder, n=30, **changes):
    folder.mkdir()
    arrays = {
        "images": np.random.default_rng(0).integers(0, 256, (n, 9, 7, 3), dtype=np.uint8),
        "labels": np.arange(n) % 3,
    }
    for part in ("train", "test"):
        np.savez(folder / f"{part}.npz", **{**arrays, **(changes if part == "test" else {})})
    return str(folder), arrays


def test_a_folder_of_arrays_is_a_data_set(tmp_path):
    name, arrays = write_arrays(tmp_path / "mine")
    found = load(name)
    assert (found.name, found.classes, found.validation_size) == ("mine", 3, 3)
    assert np.array_equal(found.pool.images.numpy(), arrays["images"])


def coloured(side=32, classes=3):
    images = np.random.default_rng(0).integers(0, 256, (30, side, side, 3), dtype=np.uint8)
    return {"images": images, "labels": np.arange(30) % classes}


def write_set(folder, arrays):
    folder.mkdir(parents=True)
    for part in ("train", "test"):
        np.savez(folder / f"{part}.npz", **arrays)
    return str(folder)


def test_a_named_set_may_lie_there_as_arrays_under_its_very_name(tmp_path):
    write_set(tmp_path / "cifar100", coloured())
    found = load("cifar100", tmp_path)
    assert (found.name, found.classes, found.validation_size) == ("cifar100", 100, 5000)
    assert found.source == str(tmp_path / "cifar100")
    assert "has 30 and 30" in found.notes[-1]  # which CIFAR-100 has not


def test_a_link_to_another_version_under_the_very_name_is_told(tmp_path):
    write_set(tmp_path / "cifar100_q90", coloured())
    (tmp_path / "cifar100").symlink_to(tmp_path / "cifar100_q90")
    found = load("cifar100", tmp_path)
    assert found.source == str(tmp_path / "cifar100_q90")
    assert "cifar100_q90', which may be another version of it" in found.notes[-2]


@pytest.fixture
def offline(monkeypatch):
    """No hub to be reached, which its libraries otherwise try for long."""
    import datasets
    import huggingface_hub

    for settings in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(settings, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline")
def test_a_set_of_another_name_is_not_taken_for_a_known_one(tmp_path):
    place = write_set(tmp_path / "cifar100_lossy", coloured())
    with pytest.raises(InputError, match=f"no cifar100 under .*; '{place}' is another set, which --data {place} takes"):
        load("cifar100", tmp_path)
    assert load(place).name == "cifar100_lossy"


@pytest.mark.parametrize("arrays", [coloured(side=31), coloured(classes=11)])
def test_a_set_that_cannot_be_the_known_one_is_not_taken_for_it(tmp_path, arrays):
    write_set(tmp_path / "cifar10", arrays)
    with pytest.raises(InputError, match="is not cifar10"):
        load("cifar10", tmp_path)


def test_a_fingerprint_is_of_images_and_labels_and_not_of_the_form(tmp_path):
    arrays = coloured(classes=10)
    one = load("cifar10", write_and_parent(tmp_path / "a", arrays))
    (tmp_path / "b" / "cifar-10-batches-py").mkdir(parents=True)
    for index, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        rows = slice(None) if name == "test_batch" else slice(6 * index, 6 * index + 6)
        pixels, labels = arrays["images"][rows].transpose(0, 3, 1, 2), arrays["labels"][rows].tolist()
        batch = {b"data": np.ascontiguousarray(pixels).reshape(-1, 3072), b"labels": labels}
        (tmp_path / "b" / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(batch, protocol=2))
    other = load("cifar10", tmp_path / "b")
    assert one.source != other.source
    assert one.fingerprint == other.fingerprint
    arrays["images"][3, 4, 5, 0] ^= 1
    pixel = load("cifar10", write_and_parent(tmp_path / "c", arrays))
    arrays["labels"][0] = 5
    label = load("cifar10", write_and_parent(tmp_path / "d", arrays))
    assert len({found.fingerprint for found in (one, pixel, label)}) == 3


def write_and_parent(folder, arrays):
    write_set(folder / "cifar10", arrays)
    return folder


@pytest.mark.parametrize(
    ("name", "wanted"), [("digits", "digits"), ("owner/pets", "owner_pets"), ("../up", ".._up"), ("a b$/c", "a_b_c")]
)
def test_a_name_becomes_a_piece_of_a_files_name(name, wanted):
    assert slug(name) == wanted


def test_a_folders_piece_is_its_own_name_alone(tmp_path, monkeypatch):
    (tmp_path / "my [set]").mkdir()
    monkeypatch.chdir(tmp_path / "my [set]")
    assert slug(str(tmp_path / "my [set]")) == slug(".") == slug("../my [set]") == "my_set_"


def test_without_a_home_its_sign_is_one_line(monkeypatch):
    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.expanduser", homeless)
    for name, place in (("~/mine", None), ("cifar10", "~/sets")):
        with pytest.raises(InputError, match="give the whole path"):
            load(name, place)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"images": np.zeros((30, 9, 7), np.uint8)}, "grey"),
        ({"images": np.zeros((30, 9, 7, 4), np.uint8)}, r"\(30, 9, 7, 4\)"),
        ({"images": np.zeros((30, 9, 7, 3), np.float32)}, "float32"),
        ({"images": np.zeros((30, 8, 8, 3), np.uint8)}, "one size"),
        ({"labels": np.arange(29)}, r"\(29,\)"),
        ({"labels": np.zeros(30)}, "float64"),
        ({"labels": np.full(30, 3)}, "no image of .* has, 3"),
        ({"labels": np.full(30, -1)}, "withheld"),
        ({"labels": np.arange(30) - 1}, "missing"),
        ({"labels": np.array([{}] * 30)}, "cannot be read"),
    ],
)
def test_arrays_of_the_wrong_kind_have_their_line(tmp_path, changes, told):
    name, _ = write_arrays(tmp_path / "mine", **changes)
    with pytest.raises(InputError, match=told) as caught:
        load(name)
    assert "\n" not in str(caught.value)


def test_a_truncated_array_file_is_named(tmp_path):
    name, _ = write_arrays(tmp_path / "mine")
    file = tmp_path / "mine" / "test.npz"
    file.write_bytes(file.read_bytes()[:-400])
    with pytest.raises(InputError, match=r"test\.npz"):
        load(name)


def test_a_folder_without_data_says_what_it_needs(tmp_path):
    with pytest.raises(InputError, match=r"train\.npz and test\.npz"):
        load(str(tmp_path))


# -- image folders ----------------------------------------------------------------------------------------------------


def write_images(folder, spoil=None):
    for part in ("train", "test"):
        for label in ("cat", "dog"):
            (folder / part / label).mkdir(parents=True)
            for i in range(3):
                pixels = np.full((8, 8, 3), 40 * i + (100 if label == "dog" else 0), np.uint8)
                Image.fromarray(pixels).save(folder / part / label / f"{i}.png")
    if spoil:
        spoil(folder / "test" / "dog" / "1.png")
    return str(folder)


def test_an_image_folder_is_a_data_set(tmp_path):
    found = load(write_images(tmp_path / "pets"))
    assert (found.classes, len(found.pool), len(found.test)) == (2, 6, 6)
    assert found.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.test.images[5].unique().tolist() == [180]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda file: Image.new("L", (8, 8)).save(file), "8x8 grey"),
        (lambda file: Image.new("RGB", (8, 9)).save(file), "9x8 RGB"),
        (lambda file: file.write_bytes(file.read_bytes()[:40]), "not a whole image"),
        (lambda file: file.write_bytes(b""), "not a whole image"),
    ],
)
def test_an_image_unlike_the_others_is_named(tmp_path, spoil, told):
    with pytest.raises(InputError, match=told) as caught:
        load(write_images(tmp_path / "pets", spoil))
    assert "1.png" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_all_grey_folder_has_one_channel(tmp_path):
    folder = write_images(tmp_path / "pets")
    for file in (tmp_path / "pets").rglob("*.png"):
        Image.open(file).convert("L").save(file)
    assert load(folder).pool.images.shape == (6, 8, 8, 1)


def test_parquet_without_labels_names_its_columns(tmp_path):
    import datasets

    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "png")
    for part in ("train", "test"):
        datasets.Dataset.from_dict({"image": [{"bytes": stream.getvalue(), "path": None}], "kind": [0]}).to_parquet(
            tmp_path / f"{part}.parquet"
        )
    with pytest.raises(InputError, match="columns image, kind"):
        load(str(tmp_path))


@pytest.mark.usefixtures("offline")
def test_a_hub_id_that_cannot_be_reached_is_one_line():
    with pytest.raises(InputError, match="nobody/nothing") as caught:
        load("nobody/nothing")
    assert "\n" not in str(caught.value)
