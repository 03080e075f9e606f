"""Published sets of corrupted images in both layouts, written here and read back."""

import numpy as np
import pytest
import torch
from PIL import Image

from flatsparse.common.errors import InputError
from flatsparse.experiments.data.corrupted import read_corrupted
from flatsparse.experiments.data.corruptions import MAIN, SEVERITIES, corrupt

CLASSES = ("bee", "cat", "fox")
NAMES = ("contrast", "shot_noise", "spatter")
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8))
TARGETS = np.array([0, 0, 1, 1, 1, 2])


def write_arrays(folder, names=NAMES):
    folder.mkdir()
    for name in names:
        parts = [corrupt(IMAGES, name, severity).numpy() for severity in SEVERITIES]
        np.save(folder / f"{name}.npy", np.concatenate(parts))
    np.save(folder / "labels.npy", np.tile(TARGETS, 5).astype(np.uint8))
    return folder


def write_folders(folder, names=NAMES):
    for name in names:
        for severity in SEVERITIES:
            for index, image in enumerate(corrupt(IMAGES, name, severity).numpy()):
                inside = folder / name / str(severity) / CLASSES[TARGETS[index]]
                inside.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(inside / f"{index}.JPEG", quality=85)
    return folder


def test_arrays_come_back_a_severity_at_a_time_and_stay_on_the_disk(tmp_path):
    found = read_corrupted(write_arrays(tmp_path / "c"), len(CLASSES))
    parts = list(found)
    assert found.kind == "arrays"
    assert [(part.corruption, part.severity) for part in parts] == [
        (name, severity) for name in ("shot_noise", "contrast", "spatter") for severity in SEVERITIES
    ]
    for part in parts:
        assert isinstance(part.images, np.memmap)
        assert np.array_equal(part.images, corrupt(IMAGES, part.corruption, part.severity).numpy())
        assert part.labels.tolist() == TARGETS.tolist()
        assert part.labels.dtype == np.int64


@pytest.mark.parametrize("classes", [CLASSES, ("ant", *CLASSES), 3])
def test_folders_come_back_as_files_with_the_numbers_of_their_classes(tmp_path, classes):
    found = read_corrupted(write_folders(tmp_path / "c"), classes)
    parts = list(found)
    assert found.kind == "folders"
    assert len(parts) == 15
    for part in parts:
        assert part.labels.tolist() == (TARGETS + (len(classes) - 3 if classes != 3 else 0)).tolist()
        for file, image in zip(part.images, corrupt(IMAGES, part.corruption, part.severity), strict=True):
            assert file.parts[-4:-1] == (part.corruption, str(part.severity), CLASSES[TARGETS[int(file.stem)]])
            assert np.asarray(Image.open(file)).shape == image.shape


def test_the_categories_of_the_archives_are_looked_into(tmp_path):
    write_folders(tmp_path / "noise", ("shot_noise",))
    write_folders(tmp_path / "extra", ("spatter",))
    write_folders(tmp_path, ("fog",))
    assert list(read_corrupted(tmp_path, CLASSES).paths) == ["shot_noise", "fog", "spatter"]


def test_a_set_says_what_it_lacks_and_what_is_left_out(tmp_path):
    folder = write_arrays(tmp_path / "c")
    np.save(folder / "hail.npy", np.zeros(3))
    found = read_corrupted(folder, CLASSES)
    assert found.lacking == tuple(name for name in MAIN if name not in NAMES)
    assert found.left == ("hail",)
    write_arrays(tmp_path / "all", MAIN)
    assert read_corrupted(tmp_path / "all", CLASSES).lacking == ()


def but(write, change):
    """Write a set and change something in it."""

    def written(folder):
        write(folder)
        change(folder)

    return written


def resave(name, change):
    return lambda folder: np.save(folder / name, change(np.load(folder / name)))


def swapped(labels):
    labels[[0, 5]] = labels[[5, 0]]
    return labels


@pytest.mark.parametrize(
    ("write", "classes", "message"),
    [
        (lambda folder: None, 3, "is not a folder"),
        (lambda folder: folder.mkdir(), 3, "holds no corruption that is known: it needs NAME.npy"),
        (lambda folder: (folder / "shot_nois").mkdir(parents=True), 3, "'shot_nois' is none; nearest: shot_noise"),
        (lambda folder: (write_arrays(folder), write_folders(folder)), 3, "as arrays and as folders"),
        (but(write_arrays, lambda folder: (folder / "labels.npy").unlink()), 3, "labels.npy' is not there"),
        (
            but(write_arrays, resave("labels.npy", lambda x: x[:-1])),
            3,
            r"labels.npy' is uint8 \(29,\), wanted integers \(30,\)",
        ),
        (but(write_arrays, resave("labels.npy", lambda x: x.astype(float))), 3, r"labels.npy' is float64"),
        (but(write_arrays, resave("labels.npy", swapped)), 3, "differs between severities"),
        (write_arrays, 2, "labels from 0 to 2, but there are 2 classes"),
        (but(write_arrays, resave("contrast.npy", lambda x: x[:-1])), 3, "29 images, which are not five severities"),
        (but(write_arrays, resave("contrast.npy", lambda x: x[:0])), 3, "0 images, which are not five severities"),
        (
            but(write_arrays, resave("contrast.npy", lambda x: x.transpose(0, 3, 1, 2))),
            3,
            r"\(30, 3, 32, 32\), wanted uint8",
        ),
        (but(write_arrays, resave("contrast.npy", lambda x: x / 255)), 3, "contrast.npy' is float64"),
        (but(write_arrays, resave("contrast.npy", lambda x: np.array([{}]))), 3, "cannot be read as an array"),
        (but(write_arrays, lambda folder: (folder / "fog.npy").write_bytes(b"")), 3, "cannot be read as an array"),
        (
            but(write_folders, lambda folder: (folder / "contrast" / "4").rename(folder / "contrast" / "6")),
            CLASSES,
            "contrast' has no severity 4",
        ),
        (write_folders, ("bee", "cat", "dog"), "fox' is of no class that is known"),
        (write_folders, 4, "has 3 class folders, but there are 4 classes"),
    ],
)
def test_what_cannot_be_read_is_refused_before_it_is_iterated_over(tmp_path, write, classes, message):
    write(tmp_path / "c")
    with pytest.raises(InputError, match=message) as raised:
        read_corrupted(tmp_path / "c", classes)
    assert "\n" not in str(raised.value)


def test_a_severity_with_fewer_images_is_refused_when_it_comes(tmp_path):
    folder = write_folders(tmp_path / "c", ("fog",))
    (folder / "fog" / "3" / "fox" / "5.JPEG").unlink()
    parts = iter(read_corrupted(folder, CLASSES))
    assert [next(parts).severity, next(parts).severity] == [1, 2]
    with pytest.raises(InputError, match="3' has 5 images, but severity 1 has 6"):
        next(parts)
    for file in (folder / "fog" / "1").glob("*/*"):
        file.unlink()
    with pytest.raises(InputError, match="1' holds no images"):
        next(iter(read_corrupted(folder, CLASSES)))
