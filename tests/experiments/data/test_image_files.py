"""Images in files are found in every layout that ImageNet comes in, and their index is a few bytes an image."""

import gc
import os
import pickle
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from flatsparse.common.errors import InputError
from flatsparse.experiments.data.file_sets import read_image_files
from flatsparse.experiments.data.image_arrays import ArrayRows, read_arrays
from flatsparse.experiments.data.image_files import ImageFiles, _row_group, file_list
from flatsparse.experiments.data.pixels import decoded
from flatsparse.experiments.data.splits import divided
from tests.experiments.images import level, png, write_class, write_parts, write_table

CLASSES = ("n02", "n01", "n03")  # in the development kit's order, which is not alphabetical
SHOWN = [2, 0, 1, 1, 2, 0]  # the classes of the flat images, in alphabetical order: n03, n01, n02, …
NAMES = [f"ILSVRC2012_val_{number:08}" for number in range(1, 7)]


def write_flat(folder, count=6):
    """Images without class folders, whose greys tell what their class is."""
    folder.mkdir(parents=True)
    for name, shown in list(zip(NAMES, SHOWN, strict=True))[:count]:
        Image.new("RGB", (8, 8), (level(sorted(CLASSES)[shown]),) * 3).save(folder / f"{name}.JPEG", quality=95)


def write_solution(file):
    lines = [f"{name},{sorted(CLASSES)[shown]} 1 2 3 4 n09 1 2 3 4" for name, shown in zip(NAMES, SHOWN, strict=True)]
    file.write_text("\n".join(["ImageId,PredictionString", *reversed(lines)]))  # in no order, as it comes


def write_numbers(folder):
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [CLASSES.index(sorted(CLASSES)[shown]) + 1 for shown in SHOWN]
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(map(str, numbers)) + "\n")


def write_meta(file):
    """The development kit's list, in which groups of classes come after the classes."""
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [(4, "n00", "a group", 3), *((number + 1, name, "words", 0) for number, name in enumerate(CLASSES))]
    savemat(file, {"synsets": np.array(rows, kinds)[:, None]})


def imagenet(tmp_path, around=""):
    """The folder of a training part in class folders and a flat validation part."""
    place = tmp_path / "imagenet"
    inner = place / around
    write_parts(inner, {"train": CLASSES})
    write_flat(inner / "val")
    return place, inner


def greys(images):
    """The grey of each image, as its file has it."""
    contents = (images.stored.content(int(images.stored_rows(torch.tensor(index)))) for index in range(len(images)))
    return [int(decoded(content, file).pixels[0, 0, 0]) for file, content in contents]


def shown_as_labelled(images, names, off=3):
    """Whether each image is the one of its label."""
    wanted = [level(names[label]) for label in images.labels]
    return all(0 <= found - grey < off for found, grey in zip(greys(images), wanted, strict=True))


@pytest.mark.parametrize("held", ["test", "val"])
def test_class_folders(tmp_path, held):
    found = read_image_files(tmp_path / write_parts(tmp_path / "pets", {"train": ("cat", "dog"), held: ("dog", "cat")}))
    assert (found.name, found.classes, len(found.pool), len(found.test)) == ("pets", 2, 6, 6)
    for part in (found.pool, found.test):
        assert part.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert shown_as_labelled(part, ("cat", "dog"))
    assert found.validation is None
    assert found.validation_size == 1


def test_a_validation_part_beside_a_test_part(tmp_path):
    names = ("cat", "dog")
    found = read_image_files(tmp_path / write_parts(tmp_path / "pets", dict.fromkeys(("train", "val", "test"), names)))
    assert (len(found.validation), found.validation_size) == (6, 6)
    train, validation, test = divided(found, train_size=4, validation_size=5, label_noise=0.0, seed=3)
    assert [len(part) for part in (train, validation, test)] == [4, 5, 6]
    for part in (train, validation, test):
        assert shown_as_labelled(part, names)


def test_divided_parts_are_disjoint_and_label_noise_stays_in_training(tmp_path):
    for name in ("cat", "dog"):
        write_class(tmp_path / "pets" / "train" / name, 30)
        write_class(tmp_path / "pets" / "test" / name)
    found = read_image_files(tmp_path / "pets")
    train, validation, _ = divided(found, train_size=None, validation_size=20, label_noise=0.25, seed=0)
    assert sorted(torch.cat([train.rows, validation.rows]).tolist()) == list(range(60))
    right = found.pool.labels
    assert int((train.labels != right[train.rows]).sum()) == 10
    assert validation.labels.equal(right[validation.rows])


@pytest.mark.parametrize("around", ["", "ILSVRC/Data/CLS-LOC"])
def test_a_flat_validation_part_beside_the_solution_of_kaggle(tmp_path, around):
    place, inner = imagenet(tmp_path, around)
    write_solution(place / "LOC_val_solution.csv")
    (place / "LOC_synset_mapping.txt").write_text("\n".join(f"{name} words, more" for name in sorted(CLASSES)))
    if around:
        (place / "ILSVRC" / "Annotations" / "CLS-LOC").mkdir(parents=True)
        (place / "ILSVRC" / "ImageSets").mkdir()
        (inner / "test").mkdir()
        Image.new("RGB", (8, 8)).save(inner / "test" / "ILSVRC2012_test_00000001.JPEG")
    found = read_image_files(place)
    assert found.test.labels.tolist() == SHOWN
    assert shown_as_labelled(found.test, sorted(CLASSES))
    assert any("withheld" in note for note in found.notes) == bool(around)


def test_a_flat_validation_part_beside_a_class_an_image(tmp_path):
    place, inner = imagenet(tmp_path)
    listed = "\n".join(sorted(CLASSES)[shown] for shown in SHOWN)
    (inner / "imagenet_2012_validation_synset_labels.txt").write_text(listed)
    assert shown_as_labelled(read_image_files(place).test, sorted(CLASSES))


@pytest.mark.parametrize("numbers", [False, True])
def test_a_flat_validation_part_beside_a_list_of_names(tmp_path, numbers):
    place, _ = imagenet(tmp_path)
    known = CLASSES if numbers else sorted(CLASSES)
    labels = [known.index(sorted(CLASSES)[shown]) if numbers else known[shown] for shown in SHOWN]
    lines = [f"{name}.JPEG {label}" for name, label in zip(NAMES, labels, strict=True)]
    (place / "val.txt").write_text("\n".join(reversed(lines)))
    (place / "synsets.txt").write_text("\n".join(CLASSES))
    found = read_image_files(place)
    assert found.test.labels.tolist() == SHOWN
    assert shown_as_labelled(found.test, sorted(CLASSES))
    if numbers:
        (place / "synsets.txt").write_text("n02\nn01")
        with pytest.raises(InputError, match="has the number 2: wanted 0 to 1"):
            read_image_files(place)


@pytest.mark.parametrize("kit", ["", "ILSVRC2012_devkit_t12/data"])
@pytest.mark.parametrize("listed", ["meta.mat", "synsets.txt", "LOC_synset_mapping.txt"])
def test_numbers_of_the_development_kit_are_in_its_own_order(tmp_path, kit, listed):
    place, _ = imagenet(tmp_path)
    write_numbers(place / kit)
    if listed == "meta.mat":
        write_meta(place / kit / listed)
    else:
        (place / kit / listed).write_text("\n".join(f"{name} words, more" for name in CLASSES))
    found = read_image_files(place)
    assert found.test.labels.tolist() == SHOWN
    assert shown_as_labelled(found.test, sorted(CLASSES))


def test_numbers_without_their_order_are_refused(tmp_path):
    place, _ = imagenet(tmp_path)
    write_numbers(place)
    with pytest.raises(InputError, match=r"no list says which.*meta\.mat"):
        read_image_files(place)
    alphabetical = "\n".join(f"n{number:04}" for number in range(1000))
    (place / "LOC_synset_mapping.txt").write_text(alphabetical)
    with pytest.raises(InputError, match=r"numbers that are not of an alphabetical list.*meta\.mat"):
        read_image_files(place)
    write_meta(place / "meta.mat")
    assert read_image_files(place).test.labels.tolist() == SHOWN


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        (None, "", r"val' holds images without classes: put LOC_val_solution\.csv"),
        ("LOC_val_solution.csv", "ImageId,PredictionString\nILSVRC2012_val_00000001,n01 1 2 3 4", "5 of the 6 images"),
        (
            "LOC_val_solution.csv",
            "ImageId,PredictionString\nILSVRC2012_val_00000001",
            "wanted ImageId,PredictionString",
        ),
        ("val.txt", "ILSVRC2012_val_00000001.JPEG n01", "5 of the 6 images"),
        ("val.txt", "ILSVRC2012_val_00000001.JPEG", "wanted the name of an image and its class"),
        ("val.txt", "ILSVRC2012_val_00000001.JPEG 3", "no list says which"),
        ("imagenet_2012_validation_synset_labels.txt", "n01\nn02", "has 2 lines, and .* 6 images"),
        ("imagenet_2012_validation_synset_labels.txt", "n01\n" * 5 + "n77", r"'n77' \(1 images\)"),
        ("ILSVRC2012_validation_ground_truth.txt", "1\n" * 5 + "4", "the line '4': wanted numbers from 1 to 3"),
        ("ILSVRC2012_validation_ground_truth.txt", "1\n" * 5 + "x", "the line 'x': wanted numbers"),
    ],
)
def test_lists_that_are_not_of_these_images_are_refused(tmp_path, file, text, told):
    place, _ = imagenet(tmp_path)
    write_meta(place / "meta.mat")
    if file:
        (place / file).write_text(text)
    with pytest.raises(InputError, match=told):
        read_image_files(place)


def test_images_that_are_listed_and_not_there_are_told(tmp_path):
    place, inner = imagenet(tmp_path)
    write_solution(place / "LOC_val_solution.csv")
    os.unlink(inner / "val" / f"{NAMES[3]}.JPEG")
    with pytest.raises(InputError, match=rf"does not have 1 of the 6 images in .*{NAMES[3]}.*fetch all"):
        read_image_files(place)


@pytest.mark.parametrize("content", [b"", b"MATLAB", bytes(range(256))])
def test_a_damaged_list_is_refused(tmp_path, content):
    place, _ = imagenet(tmp_path)
    write_numbers(place)
    (place / "meta.mat").write_bytes(content)
    with pytest.raises(InputError, match=r"meta\.mat' is not the development kit's"):
        read_image_files(place)


def test_rows_of_parquet_files_as_the_hub_has_them(tmp_path):
    for part, labels in (("train", [0, 1, 2] * 4), ("validation", [2, 1, 0]), ("test", [-1] * 3)):
        halves = np.array_split(labels, 2)
        for number, half in enumerate(halves):
            rows = [{"bytes": png(40 * int(label) + number), "path": None} for label in half]
            table = pa.table({"image": rows, "label": half.tolist()})
            file = tmp_path / "imagenet-1k" / "data" / f"{part}-{number:05}-of-00002.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, file, row_group_size=4)
    found = read_image_files(tmp_path / "imagenet-1k")
    assert (len(found.pool), len(found.test), found.classes) == (12, 3, 3)
    assert found.pool.stored.ends.tolist() == [4, 6, 10, 12]
    numbers = [0] * 6 + [1] * 6  # the files of the rows
    wanted = [40 * int(label) + number for label, number in zip(found.pool.labels, numbers, strict=True)]
    assert greys(found.pool) == wanted
    backwards = found.pool.subset(torch.arange(11, -1, -1))
    assert greys(backwards) == wanted[::-1]
    assert any("withheld" in note for note in found.notes)
    _row_group.cache_clear()
    greys(found.pool)
    assert _row_group.cache_info().misses == 4  # once each, as they come
    assert _row_group.cache_info().currsize == 2


def test_a_row_without_an_image_is_named(tmp_path):
    for part in ("train", "test"):
        write_table(tmp_path / "pets" / f"{part}.parquet", [0, 1], rows=[{"bytes": png(), "path": None}, None])
    found = read_image_files(tmp_path / "pets")
    with pytest.raises(InputError, match=r"image 1 of 'pets \(train\)' is null"):
        found.pool.stored.content(1)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: (folder / "train" / "owl").mkdir(), r"class '.*owl' holds no images"),
        (lambda folder: Image.new("L", (8, 8)).save(folder / "train" / "x.png"), r"'.*x\.png' is in no class folder"),
        (lambda folder: (folder / "train" / "cat" / "deep").mkdir(), r"deep' is a folder in a class"),
        (lambda folder: write_class(folder / "test" / "owl"), r"'owl' \(3 images\)"),
        (lambda folder: Image.new("L", (8, 8)).save(folder / "test" / "x.png"), r"'.*x\.png' is in no class folder"),
        (lambda folder: np.savez(folder / "validation.npz", images=0), "parts of several kinds"),
    ],
)
def test_what_is_wrong_with_a_folder_is_told(tmp_path, spoil, told):
    write_parts(tmp_path / "pets", {"train": ("cat", "dog"), "test": ("cat", "dog")})
    spoil(tmp_path / "pets")
    with pytest.raises(InputError, match=told):
        read_image_files(tmp_path / "pets")


@pytest.mark.parametrize("missing", ["train", "test"])
def test_a_folder_without_a_part_is_refused(tmp_path, missing):
    write_parts(tmp_path / "pets", {part: ("cat", "dog") for part in ("train", "test") if part != missing})
    with pytest.raises(InputError, match="needs train, and test or validation"):
        read_image_files(tmp_path / "pets")


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_are_read_as_the_same_images_in_files_are(tmp_path, write, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 8, channels), np.uint8)
    labels = np.array([0, 0, 0, 1, 1, 1])
    for part in ("train", "test"):
        (tmp_path / "files" / part / "1").mkdir(parents=True)
        (tmp_path / "files" / part / "0").mkdir()
        (tmp_path / "arrays").mkdir(exist_ok=True)
        write(tmp_path / "arrays" / f"{part}.npz", labels=labels, images=pixels)
        for row, label in enumerate(labels):
            image = Image.fromarray(pixels[row].squeeze())
            image.save(tmp_path / "files" / part / str(label) / f"{row}.png")
    arrays, files = (read_image_files(tmp_path / kind) for kind in ("arrays", "files"))
    assert isinstance(arrays.pool.stored, ArrayRows)
    for row in range(6):
        assert arrays.pool.stored.image(row).mode == files.pool.stored.image(row).mode
        assert np.array_equal(arrays.pool.stored.image(row), files.pool.stored.image(row))
    assert (arrays.classes, arrays.pool.labels.tolist()) == (2, labels.tolist())
    other = read_image_files(tmp_path / "arrays").fingerprint
    assert other == arrays.fingerprint
    pixels[5, 0, 0, 0] ^= 1
    write(tmp_path / "arrays" / "train.npz", labels=labels, images=pixels)
    assert read_image_files(tmp_path / "arrays").fingerprint != other


def test_arrays_that_are_not_compressed_are_mapped(tmp_path):
    images, labels = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3), np.array([0, 1])
    for order, name in (("C", "rows.npz"), ("F", "columns.npz")):
        np.savez(tmp_path / name, labels=labels, images=np.asarray(images, order=order))
        found = read_arrays(tmp_path / name, mapped=True)[0]
        assert isinstance(found, np.memmap)
        assert np.array_equal(found, images)
    np.savez_compressed(tmp_path / "small.npz", labels=labels, images=images)
    assert not isinstance(read_arrays(tmp_path / "small.npz", mapped=True)[0], np.memmap)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "rows.npz").read_bytes()[:-40])
    with pytest.raises(InputError, match=r"cut\.npz' cannot be read"):
        read_arrays(tmp_path / "cut.npz", mapped=True)
    np.savez(tmp_path / "floats.npz", labels=labels, images=images / 255)
    with pytest.raises(InputError, match=r"floats\.npz' are float64"):
        read_arrays(tmp_path / "floats.npz", mapped=True)


def test_files_come_in_the_order_of_their_names_on_any_machine(tmp_path, monkeypatch):
    place = tmp_path / write_parts(tmp_path / "pets", {"train": ("cat", "dog"), "test": ("cat", "dog")})
    plain = read_image_files(place)
    listing, scanning = os.listdir, os.scandir

    class Backwards(list):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "listdir", lambda folder: sorted(listing(folder), reverse=True))
    monkeypatch.setattr(
        os, "scandir", lambda folder: Backwards(sorted(scanning(folder), key=lambda entry: entry.name, reverse=True))
    )
    again = read_image_files(place)
    assert again.fingerprint == plain.fingerprint
    assert greys(again.pool) == greys(plain.pool)


def test_a_name_may_be_any_bytes(tmp_path):
    write_parts(tmp_path / "pets", {"train": ("cat", "dog"), "test": ("cat", "dog")})
    names = ["ünï日本.png", os.fsdecode(b"\xff\xfe.png"), "a b\n.png"]
    for name in names:
        Image.new("L", (8, 8), 77).save(tmp_path / "pets" / "train" / "dog" / name)
    found = read_image_files(tmp_path / "pets").pool
    assert {os.path.basename(found.stored.path(row)) for row in range(len(found))} >= set(names)
    assert greys(found).count(77) == 3


def test_the_fingerprint_is_of_names_labels_and_sizes(tmp_path):
    def made(name, *, ending=".png", shade=None):
        for part in ("train", "test"):
            for kind in ("cat", "dog"):
                write_class(tmp_path / name / "pets" / part / kind, ending=ending, shade=shade)
        return read_image_files(tmp_path / name / "pets")

    assert made("one").fingerprint == made("two").fingerprint
    assert made("other").fingerprint != made("bitmaps", ending=".bmp").fingerprint
    longer = read_image_files(tmp_path / "one" / "pets")
    with open(longer.pool.stored.path(0), "ab") as stream:
        stream.write(b"x")
    assert longer.fingerprint != made("three").fingerprint


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    write_parts(tmp_path / "pets", {"train": ("cat", "dog"), "test": ("cat", "dog")})
    (tmp_path / "pets" / "train" / "cat" / "9.png").symlink_to(tmp_path / "nowhere")
    found = read_image_files(tmp_path / "pets")
    with pytest.raises(InputError, match=r"9\.png is not a file \(a link that leads nowhere"):
        found.pool.stored.content(3)
    with pytest.raises(InputError, match=r"9\.png cannot be read"):
        _ = found.fingerprint


def test_an_index_is_a_few_bytes_an_image_and_no_objects():
    count = 100_000
    gc.collect()
    tracemalloc.start()
    try:
        files = ImageFiles(
            file_list("train", (f"n{row // 1300:08}/n{row // 1300:08}_{row}.JPEG" for row in range(count))),
            torch.zeros(count, dtype=torch.int64),
        )
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(files) == count
    assert files.stored.path(77_777).endswith("n00000059/n00000059_77777.JPEG")
    size = files.stored.paths.nbytes + files.stored.ends.nbytes + files.labels.nbytes
    assert size < 48 * count
    assert held < 48 * count * 1.2  # bytearrays grow by an eighth
    pickled = pickle.dumps(files)
    assert len(pickled) < 48 * count + 10_000
    half = files.subset(torch.arange(0, count, 2))
    assert half.stored is files.stored
