"""Tables of images: where their parts lie, what labels stand for, and what is never opened."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from flatsparse.common.errors import InputError
from flatsparse.experiments.data.sources import load
from tests.experiments.images import png, write_table

LABELS = [0, 1, 2, 2, 1, 0]
LAYOUTS = {
    "by name": ("train.parquet", "test.parquet"),
    "by name, with numbers": ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
    "by name, with a hash": (
        "train-00000-of-00001-0123456789abcdef.parquet",
        "test-00000-of-00001-a0b1c2d3e4f5.parquet",
    ),
    "in data": ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
    "in folders": ("train/0000.parquet", "test/0000.parquet"),
    "as the hub converts": ("default/train/0000.parquet", "default/test/0000.parquet"),
    "in capitals": ("Train.PARQUET", "TEST.PARQUET"),
    "as validation": ("train/0000.parquet", "validation/0000.parquet"),
    "whatever the files are called": ("train/test-1.parquet", "test/train-1.parquet"),
}


def write_set(folder, **parts):
    """Tables by part, each of its labels or of keywords of ``write_table``."""
    for part, told in {"train": LABELS, "test": LABELS, **parts}.items():
        write_table(folder / f"{part}.parquet", **(told if isinstance(told, dict) else {"labels": told}))
    return str(folder)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_or_its_folder_tells_the_part(tmp_path, layout):
    for name, labels in zip(LAYOUTS[layout], (LABELS, LABELS[:3]), strict=True):
        write_table(tmp_path / "mine [*]" / name, labels)
    found = load(str(tmp_path / "mine [*]"))
    assert (found.pool.labels.tolist(), found.test.labels.tolist()) == (LABELS, LABELS[:3])
    assert [int(image[0, 0, 0]) for image in found.pool.images] == list(range(6))


def test_several_files_are_one_part_in_the_order_of_their_names(tmp_path):
    write_set(tmp_path)
    (tmp_path / "train.parquet").unlink()
    for place in (1, 0):
        write_table(tmp_path / f"train-0000{place}-of-00002.parquet", LABELS[3 * place : 3 * place + 3])
    assert load(str(tmp_path)).pool.labels.tolist() == LABELS


def test_a_file_that_is_missing_among_several_is_noticed(tmp_path):
    write_set(tmp_path)
    (tmp_path / "train.parquet").rename(tmp_path / "train-00000-of-00003.parquet")
    with pytest.raises(InputError, match=r"one of 3 files of '.* \(train\)', but 1 are there"):
        load(str(tmp_path))


def test_files_of_no_part_are_told_and_left_out(tmp_path):
    found = load(write_set(tmp_path / "mine", **{"train_extra": [5, 6], "train-clean-100": [7], "unsupervised": [8]}))
    assert (len(found.pool), found.classes) == (6, 3)
    assert "train_extra.parquet" in found.notes[0]


@pytest.mark.parametrize("hidden", [[-1] * 4, [None] * 4, ["x"]])
def test_where_test_labels_are_withheld_validation_is_the_test(tmp_path, hidden):
    test = {"labels": hidden, "label": "other" if hidden == ["x"] else "label"}
    found = load(write_set(tmp_path, test=test, validation=[0, 1, 2]))
    assert found.test.labels.tolist() == [0, 1, 2]
    assert "are withheld" in found.notes[0]
    assert "tested on its validation part" in found.notes[1]
    (tmp_path / "validation.parquet").unlink()
    with pytest.raises(InputError, match=r"train, test \(withheld are the labels of test\)"):
        load(f"{tmp_path}/../{tmp_path.name}")


@pytest.mark.parametrize("column", ["label", "labels", "fine_label", "class"])
@pytest.mark.parametrize("image", ["image", "img", "images"])
def test_columns_have_several_names(tmp_path, image, column):
    told = {"labels": LABELS, "image": image, "label": column}
    assert load(write_set(tmp_path, train=told, test=told)).classes == 3


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_labels_may_be_names(tmp_path, kind):
    train, test = (pa.array(names).cast(kind) for names in (["dog", "cat", "emu"], ["emu", "dog"]))
    found = load(write_set(tmp_path, train=train, test=test))
    assert (found.pool.labels.tolist(), found.test.labels.tolist(), found.classes) == ([1, 0, 2], [2, 1], 3)
    assert any("no images of class 'cat'" in note for note in found.notes)


def test_labels_may_be_yes_and_no_or_small_numbers(tmp_path):
    assert load(write_set(tmp_path / "a", train=[True, False], test=[True])).test.labels.tolist() == [1]
    small = pa.array(LABELS, pa.uint8())
    assert load(write_set(tmp_path / "b", train=small, test=small)).pool.labels.tolist() == LABELS


@pytest.mark.parametrize(
    ("part", "labels", "told"),
    [
        ("train", [0, 1, None, 2], "1 of the 4 labels .* missing"),
        ("train", [0, 1, -1, -1], "2 of the 4 labels .* missing"),
        ("test", [0, -1], "1 of the 2 labels .* missing"),
        ("train", [[0], [1, 2]], "of type list"),
        ("train", [0.0, 1.0], "of type float"),
        ("train", [-2, 0, 1], "from -2 to 1"),
        ("train", [0, 1, 2**40], "from 0 to"),
        ("train", ["cat", "dog"], "not both names or both numbers"),
        ("train", [], "holds no images"),
        ("train", [1, 1], "one class, 1"),
        ("test", [0, 3], r"classes that no image of '.* \(train\)' has, 3 \(1 images\)"),
    ],
)
def test_labels_that_stand_for_no_class_are_refused_in_a_line(tmp_path, part, labels, told):
    with pytest.raises(InputError, match=told) as caught:
        load(write_set(tmp_path, **{part: labels}))
    assert "\n" not in str(caught.value)


def noted(*names):
    """Metadata as the datasets library writes them."""
    return {"huggingface": json.dumps({"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}})}


def test_numbers_that_stand_for_other_names_in_another_part_are_refused(tmp_path):
    train, test = ({"labels": [0, 1], "metadata": noted(*names)} for names in (("cat", "dog"), ("dog", "cat")))
    assert load(write_set(tmp_path / "a", train=train, test=train)).classes == 2
    with pytest.raises(InputError, match="numbers stand for other classes"):
        load(write_set(tmp_path / "b", train=train, test=test))
    more = {"labels": [0, 1, 2], "metadata": noted("cat", "dog", "emu")}
    with pytest.raises(InputError, match=r"'emu' \(1 images\)"):
        load(write_set(tmp_path / "c", train={**more, "labels": [0, 1]}, test=more))


@pytest.mark.parametrize("form", ["bytes", "large bytes", "with a name"])
def test_images_are_bytes_alone_or_beside_a_name(tmp_path, form):
    contents = [png(1), png(2)]
    rows = {"bytes": contents, "large bytes": pa.array(contents, pa.large_binary())}
    rows["with a name"] = [{"bytes": content, "path": "/somewhere/else.png"} for content in contents]
    told = {"labels": [0, 1], "rows": rows[form]}
    assert load(write_set(tmp_path, train=told, test=told)).pool.images[:, 0, 0, 0].tolist() == [1, 2]


@pytest.mark.parametrize("where", ["/absolute", "beside", "../above"])
def test_a_path_in_a_table_is_never_opened(tmp_path, where):
    secret = {
        "/absolute": tmp_path / "secret.png",
        "beside": tmp_path / "mine" / "beside",
        "../above": tmp_path / "above",
    }
    secret[where].parent.mkdir(exist_ok=True)
    secret[where].write_bytes(png())
    path = str(secret[where]) if where == "/absolute" else where
    rows = [{"bytes": png(), "path": None}, {"bytes": None, "path": path}]
    with pytest.raises(InputError, match=r"image 1 of 'mine \(train\)' has no bytes, and its path .* is not opened"):
        load(write_set(tmp_path / "mine", train={"labels": [0, 1], "rows": rows}, test=[0, 1]))


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"bytes": png(), "path": None}, None], "image 1 of .* is null"),
        ([{"bytes": png(), "path": None}, {"bytes": None, "path": None}], "image 1 of .* is null"),
        ([{"bytes": png(), "path": "a.png"}, {"bytes": b"x", "path": "b.png"}], r"b\.png'\) is not a whole image"),
        (
            [{"bytes": png(), "path": None}, {"bytes": b"x", "path": "b\n" * 999}],
            r"image 1 of .*b.n.* is not a whole image",
        ),
        ([[1, 2], [3, 4]], "is of type list"),
        (["a.png", "b.png"], "is of type str"),
    ],
)
def test_what_is_no_image_is_named(tmp_path, rows, told):
    with pytest.raises(InputError, match=told) as caught:
        load(write_set(tmp_path, train={"labels": [0, 1], "rows": rows}, test=[0, 1]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spoil", [lambda b: b[:-20], lambda b: b"", lambda b: b[:100] + bytes(200) + b[300:]])
def test_a_damaged_table_is_named(tmp_path, spoil):
    place = write_set(tmp_path)
    file = tmp_path / "test.parquet"
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(InputError, match=r"test") as caught:
        load(place)
    assert "\n" not in str(caught.value)


def test_one_kind_of_parts_at_a_time(tmp_path):
    place = write_set(tmp_path)
    np.savez(tmp_path / "validation.npz", images=np.zeros((2, 8, 8, 1), np.uint8), labels=[0, 1])
    with pytest.raises(InputError, match=r"several kinds \(arrays, tables\)"):
        load(place)


# -- the hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub whose only data set is what a test puts there, kept in a folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "kept"))

    def offer(**parts):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
        tables = {
            part: datasets.Dataset.from_dict({"image": rows, "label": labels}, features=features)
            for part, (rows, labels) in parts.items()
        }
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(tables))

    return offer


def test_a_set_of_the_hub_is_read_by_the_same_rules(hub):
    pictures = [Image.new("L", (8, 8), shade) for shade in (5, 6)]
    hub(train=(pictures, [0, 1]), valid=(pictures, [1, 0]), test=(pictures, [-1, -1]), extra=(pictures, [0, 0]))
    found = load("some/pets")
    assert (found.pool.labels.tolist(), found.test.labels.tolist()) == ([0, 1], [1, 0])
    assert found.pool.images[:, 0, 0, 0].tolist() == [5, 6]
    assert found.source == "hub:some/pets"


def test_a_path_in_a_set_of_the_hub_leads_to_its_own_copies_only(hub, tmp_path):
    kept, secret = tmp_path / "kept" / "a.png", tmp_path / "secret.png"
    kept.parent.mkdir()
    for file in (kept, secret):
        file.write_bytes(png(9))
    hub(train=([str(kept)] * 2, [0, 1]), test=([str(kept)] * 2, [0, 1]))
    assert load("some/copies").pool.images.unique().tolist() == [9]
    for path in (str(secret), f"{tmp_path}/kept/../secret.png"):
        hub(train=([path] * 2, [0, 1]), test=([str(kept)] * 2, [0, 1]))
        with pytest.raises(InputError, match="is not opened"):
            load("some/other")


def test_no_more_than_the_columns_that_are_needed_is_read(tmp_path):
    table = pa.table({"image": [png(1), png(2)], "label": [0, 1], "other": [[{"a": 1}], None]})
    for part in ("train", "test"):
        pq.write_table(table, tmp_path / f"{part}.parquet")
    assert len(load(str(tmp_path)).pool) == 2
