"""Folders of images are read by what their layout says, and by nothing else."""

import os
import re
import unicodedata

import pytest
from PIL import Image

from flatsparse.common.errors import InputError
from flatsparse.experiments.data.sources import load
from flatsparse.experiments.data.splits import split
from tests.experiments.images import level, write_class, write_parts, write_table

PETS = {"train": ("cat", "dog"), "test": ("cat", "dog")}


def classes_of(images, names):
    """The classes that images show, as their greys tell."""
    shades = {level(name) + place: name for name in names for place in range(3)}
    return [shades[int(image[0, 0, 0])] for image in images.images]


@pytest.mark.parametrize("word", ["train", "test", "validation", "val", "data", "default"])
def test_a_class_may_be_called_like_a_part(tmp_path, word):
    names = ("bus", word)
    found = load(write_parts(tmp_path / "vehicles", {"train": names, "test": names}))
    assert (len(found.pool), len(found.test), found.classes) == (6, 6, 2)
    assert classes_of(found.pool, names) == classes_of(found.test, names) == ["bus"] * 3 + [word] * 3


@pytest.mark.parametrize("extra", ["aardvark", "dingo", "zebra", "train"])
def test_a_class_that_only_the_test_has_is_refused_by_name_wherever_it_stands(tmp_path, extra):
    place = write_parts(tmp_path / "pets", {**PETS, "test": ("cat", "dog", extra)})
    with pytest.raises(InputError, match=rf"pets \(test\).*'{extra}' \(3 images\)"):
        load(place)


@pytest.mark.parametrize("lost", ["180", "0", "90"])
def test_labels_follow_names_where_the_test_lacks_a_class_and_that_is_told(tmp_path, lost):
    names = ("0", "180", "270", "90")
    place = write_parts(tmp_path / "turned", {"train": names, "test": [name for name in names if name != lost]})
    found = load(place)
    assert found.classes == 4
    for images in (found.pool, found.test):
        assert [names[label] for label in images.labels] == classes_of(images, names)
    assert any(f"no images of class '{lost}'" in note for note in found.notes)


@pytest.mark.parametrize(
    "name", ["scans [v1]", "a b", "all*", "what?", "#1", "50%", "~me", "{x,y}", "ünïcode-日本", "a,b", "s3:x", "..."]
)
def test_no_name_is_a_pattern(tmp_path, name):
    write_class(tmp_path / "scans v" / "train" / "other")  # what a pattern might find
    write_parts(tmp_path / name, {"train": ("[a]", "b*"), "test": ("[a]", "b*")})
    assert len(load(str(tmp_path / name)).pool) == 6


@pytest.mark.parametrize(
    ("train", "test"),
    [("train", "test"), ("Train", "TEST"), ("training", "testing"), ("TRAIN", "val"), ("train", "valid")],
)
@pytest.mark.parametrize("around", ["", "data", "default/inner"])
def test_parts_have_several_names_and_may_lie_deeper(tmp_path, train, test, around):
    write_parts(tmp_path / "pets" / around, {train: ("cat", "dog"), test: ("cat", "dog")})
    assert load(str(tmp_path / "pets")).test.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_the_validation_part_is_held_out_and_no_other(tmp_path):
    found = load(write_parts(tmp_path / "pets", {**PETS, "val": ("cat", "dog")}))
    assert (len(found.pool), len(found.validation), len(found.test)) == (6, 6, 6)
    options = {"train_size": None, "label_noise": 0.0, "seed": 0}
    whole = split(found, validation_size=None, **options)
    assert (len(whole.train), len(whole.validation)) == (6, 6)
    assert len(split(found, validation_size=2, **options).validation) == 2
    again = split(found, validation_size=6, **options)  # as a finished run is read
    assert again.validation.samples.labels.equal(whole.validation.samples.labels)
    with pytest.raises(InputError, match="the 6 validation images"):
        split(found, validation_size=7, **options)


def test_the_validation_part_is_the_test_where_there_is_no_other(tmp_path):
    found = load(write_parts(tmp_path / "pets", {"train": ("cat", "dog"), "valid": ("cat", "dog")}))
    assert len(found.test) == 6
    assert any("tested on its validation part" in note for note in found.notes)


def test_files_come_in_the_order_of_their_names_on_any_machine(tmp_path, monkeypatch):
    place = write_parts(tmp_path / "pets", PETS)
    listed = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: sorted(listed(folder), reverse=True))
    assert classes_of(load(place).pool, ("cat", "dog")) == ["cat"] * 3 + ["dog"] * 3
    assert [int(image[0, 0, 0]) - level("cat") for image in load(place).pool.images[:3]] == [0, 1, 2]


def test_an_accent_may_be_written_in_two_ways(tmp_path):
    one, other = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    place = write_parts(tmp_path / "places", {"train": (one, "dog"), "test": (other, "dog")})
    assert load(place).test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    write_class(tmp_path / "places" / "train" / other)
    with pytest.raises(InputError, match="written alike"):
        load(f"{place}/../places")


def test_what_is_hidden_is_not_there_and_what_is_no_image_is_told(tmp_path):
    place = write_parts(tmp_path / "pets", PETS)
    folder = tmp_path / "pets" / "train"
    for name in (".DS_Store", "cat/._0.png", "cat/.hidden.png", "cat/Thumbs.db", "cat/desktop.ini"):
        (folder / name).write_bytes(b"x")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / "cat" / "__MACOSX").mkdir()
    assert load(place).notes == ()
    for name in ("cat/notes.txt", "list.csv", "dog/boxes"):
        (folder / name).write_bytes(b"x")
    (tmp_path / "pets" / "extra").mkdir()
    found = load(f"{place}/../pets")
    assert len(found.pool) == 6
    told = " ".join(found.notes)
    assert all(name in told for name in ("3 files", "cat/notes.txt", "list.csv", "dog/boxes", "extra"))


def test_endings_may_have_capitals(tmp_path):
    write_parts(tmp_path / "pets", PETS)
    write_class(tmp_path / "pets" / "train" / "fox", ending=".JPG")
    assert len(load(str(tmp_path / "pets")).pool) == 9


def test_links_are_followed(tmp_path):
    write_parts(tmp_path / "pets", {"train": ("cat",), "test": ("cat", "dog")})
    write_class(tmp_path / "elsewhere" / "dog")
    (tmp_path / "pets" / "train" / "dog").symlink_to(tmp_path / "elsewhere" / "dog")
    assert len(load(str(tmp_path / "pets")).pool) == 6


def spoil(path, how):
    path.parent.mkdir(parents=True, exist_ok=True)
    if how == "folder":
        path.mkdir()
    elif how == "link":
        path.symlink_to(path.with_name("nowhere"))
    elif how == "image":
        Image.new("RGB", (8, 8)).save(path)
    elif how == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(how)


@pytest.mark.parametrize(
    ("name", "how", "told"),
    [
        ("train/loose.png", "image", "is in no class folder"),
        ("train/cat/kittens", "folder", "a folder in a class"),
        ("train/fox", "folder", "holds no images"),
        ("train/cat/9.png", "link", "not a file"),
        ("train/cat/9.png", "pipe", "not a file"),
        ("train/cat/9.png", b"not a picture", "not a whole image"),
        ("test/cat/9.png", b"", "not a whole image"),
        ("Train", "folder", "its train part twice"),
        ("validation.parquet", b"x", "several kinds|cannot be read"),
    ],
)
def test_what_cannot_be_read_is_named_in_a_line(tmp_path, name, how, told):
    place = write_parts(tmp_path / "pets", PETS)
    spoil(tmp_path / "pets" / name, how)
    with pytest.raises(InputError, match=told) as caught:
        load(place)
    assert "\n" not in str(caught.value)
    if "kinds" not in told:
        assert name.rpartition("/")[2] in str(caught.value)


def test_tables_and_folders_side_by_side_in_a_part_are_refused(tmp_path):
    place = write_parts(tmp_path / "pets", PETS)
    write_table(tmp_path / "pets" / "train" / "0000.parquet", [0, 1])
    with pytest.raises(InputError, match="both parquet files and folders"):
        load(place)


def test_one_class_is_no_task(tmp_path):
    with pytest.raises(InputError, match="one class, 'cat'"):
        load(write_parts(tmp_path / "pets", {"train": ("cat",), "test": ("cat",)}))


def test_a_folder_that_the_system_keeps_closed_is_one_line(tmp_path, monkeypatch):
    def closed(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", closed)
    with pytest.raises(InputError, match=re.escape(str(tmp_path)) + ".*Permission denied"):
        load(str(tmp_path))


@pytest.mark.parametrize("name", ["/", "~nobody-at-all/x", "", "x" * 5000, "a/b/c", "./absent"])
def test_what_is_no_data_set_is_one_line(name):
    with pytest.raises(InputError) as caught:
        load(name)
    assert "\n" not in str(caught.value)


def test_a_file_in_a_folders_place_is_named(tmp_path):
    (tmp_path / "train.npz").write_bytes(b"x")
    with pytest.raises(InputError, match=r"train\.npz' is a file"):
        load(str(tmp_path / "train.npz"))
