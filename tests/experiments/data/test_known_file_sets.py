"""Known data sets whose images stay in their files."""

import numpy as np
import pytest

from flatsparse.common.errors import InputError
from flatsparse.experiments.data.known_file_sets import KNOWN_FILE_SETS, find_known
from flatsparse.experiments.run.build import task_of
from flatsparse.experiments.run.config import RunConfig
from flatsparse.experiments.run.resolve import resolve
from flatsparse.experiments.tasks.make import check_data


def put(folder, classes):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 20)):
        images = rng.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
        np.savez(folder / f"{part}.npz", images=images, labels=np.arange(count) % classes)


@pytest.mark.parametrize("folder", KNOWN_FILE_SETS["imagenette"].folders)
def test_imagenette_is_images_of_64_pixels_from_any_of_its_folders(tmp_path, folder):
    put(tmp_path / folder, 10)
    run = resolve(RunConfig.of(data="imagenette", data_dir=tmp_path, workers=0))
    assert run.model == "resnet18"
    task = task_of(run)
    assert (task.name, task.notes) == ("imagenette", ())
    assert next(iter(task.splits.test.batches(20))).content[0].shape == (20, 3, 64, 64)
    assert task.augmented


def test_a_set_with_other_classes_than_its_name_promises_says_so(tmp_path):
    put(tmp_path / "imagenette", 5)
    task = task_of(resolve(RunConfig.of(data="imagenette", data_dir=tmp_path, workers=0)))
    assert task.notes == (f"imagenette has 10 classes; '{tmp_path / 'imagenette'}' has 5",)


@pytest.mark.parametrize("name", KNOWN_FILE_SETS)
def test_one_that_is_not_there_says_what_to_put_where(tmp_path, name):
    for ask in (find_known, check_data):
        with pytest.raises(InputError, match=f"no {name} under .* put {name}/train/CLASS/ .*--data-dir"):
            ask(name, tmp_path)
