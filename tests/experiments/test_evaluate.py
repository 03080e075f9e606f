"""Finished runs are evaluated again, on their test samples and on corrupted images, made or published."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from flatsparse.common.errors import InputError
from flatsparse.common.json_files import read_json
from flatsparse.experiments.data.corruptions import MAIN, SEVERITIES, corrupt
from flatsparse.experiments.evaluate import measure as measuring
from flatsparse.experiments.evaluate.measure import PIECES
from flatsparse.experiments.evaluate.record import RECORD, evaluate, tables
from flatsparse.experiments.evaluate.settings import ALEXNET, Evaluation
from flatsparse.experiments.evaluate.text import comparison_table, sentences, severity_table
from flatsparse.experiments.robustness import right_predictions, robustness
from flatsparse.experiments.robustness_table import Reference
from flatsparse.experiments.run.config import RunConfig
from flatsparse.experiments.run.load import load_run
from flatsparse.experiments.run.loop import train
from flatsparse.experiments.stats import mean_interval
from flatsparse.experiments.tasks.image_files import image_file_task
from flatsparse.experiments.tasks.settings import Dataset
from tests.experiments.images import write_table

SOME = ("gaussian_noise", "contrast")
QUICK = {"train_size": 200, "validation_size": 50, "epochs": 3, "sparsity": 0.5}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished runs on digits, of other seeds."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        train(RunConfig.of(seed=seed, **QUICK), folder / str(seed))
    return folder / "0", folder / "1"


def write_images(place, size=12, count=8, names=("cat", "dog")):
    """Class folders with images of two greys, which are learned at once, in noise."""
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for number, name in enumerate(names):
            (place / part / name).mkdir(parents=True)
            for image in range(count):
                pixels = rng.integers(0, 80, (size, size, 3)) + 150 * number
                Image.fromarray(pixels.astype(np.uint8)).save(place / part / name / f"{image}.png")
    return place


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    """A finished run on images in files, and the folder of these."""
    folder = tmp_path_factory.mktemp("streamed")
    data = write_images(folder / "pets")
    chosen = {"image_size": 8, "resize": 8, "workers": 0, "model": "digitnet", "batch_size": 8, "method": "static"}
    train(RunConfig.of(data=str(data), epochs=2, sparsity=0.5, **chosen), folder / "run")
    return folder / "run", data


def settings(*runs, **chosen):
    return Evaluation(runs=runs, jobs=1, device="cpu", **chosen)


def test_a_run_is_evaluated_again_as_its_own_end_measured_it(runs, tmp_path):
    record = evaluate(settings(*runs), tmp_path)
    assert record["runs"] == read_json(tmp_path / RECORD)["runs"]
    for run, folder in zip(record["runs"], runs, strict=True):
        result = load_run(folder).result
        assert run["samples"] == 797
        assert run["loss"] == run["recorded"]["loss"] == result.test_loss
        assert run["scores"] == run["recorded"]["scores"] == {"accuracy": result.test_accuracy}
        assert run["macro"] == result.macro
    first = evaluate(settings(runs[0], images=100), tmp_path)["runs"][0]
    assert first["samples"] == 100
    assert first["scores"] != record["runs"][0]["scores"]


def test_text_is_evaluated_again_and_not_corrupted(tmp_path):
    chosen = {"data": "numbers", "train_size": 20, "validation_size": 0, "batch_size": 20, "epochs": 1}
    train(RunConfig.of(sparsity=0.5, method="static", **chosen), tmp_path / "text")
    (run,) = evaluate(settings(tmp_path / "text", images=20), tmp_path / "out")["runs"]
    assert run["scores"]
    assert run["unit"] != "images"
    with pytest.raises(InputError, match="text' is not a run on images but on 'numbers'"):
        evaluate(settings(tmp_path / "text", corruptions=True), tmp_path / "out")


def test_corruptions_of_images_in_memory_are_those_of_robustness(runs, tmp_path, monkeypatch):
    record = evaluate(settings(runs[0], corruptions=True, only=SOME), tmp_path)
    monkeypatch.setattr(
        "flatsparse.experiments.robustness.CORRUPTIONS", dict.fromkeys(SOME, None)
    )  # whose functions `corrupt` knows
    expected = robustness(load_run(runs[0]))
    (run,) = record["runs"]
    assert run["by"] == expected["by"]
    assert run["clean"] == expected["clean"] == load_run(runs[0]).result.test_accuracy
    assert run["mean"] == expected["mean"]
    assert run["lacking"] == [name for name in MAIN if name not in SOME]
    assert len(severity_table(record, 0)[1]) == 1 + len(SOME) + 1
    assert any("not here: shot_noise" in sentence for sentence in sentences(record))


def test_runs_are_compared_image_by_image(runs, tmp_path):
    record = evaluate(settings(*runs, corruptions=True, only=("contrast",), images=90), tmp_path)
    loaded = [load_run(run) for run in runs]
    index = torch.arange(90) * 797 // 90  # at even distances
    test = loaded[0].task.splits.test.samples.take(index)
    gaps = []
    for severity in SEVERITIES:
        images = corrupt(test.images, "contrast", severity)
        one, other = right_predictions(loaded, [(images, test.labels)])
        gaps.append(other.double() - one.double())
    interval = mean_interval((100 * torch.stack(gaps).mean(0)).tolist())
    (difference,) = record["differences"]
    assert difference["mean"] == difference["by"]["contrast"] == interval.to_json()
    assert difference["mean_of_main"] is None
    one, other = record["runs"]
    assert difference["mean"]["mean"] == pytest.approx(other["mean"] - one["mean"])
    assert difference["clean"]["mean"] == pytest.approx(other["clean"] - one["clean"])
    head, rows = comparison_table(record)
    assert head == ["", "(1)", "(2)", "(2) - (1)"]
    assert [row[0] for row in rows] == ["clean", "contrast", "mean of 1"]


def test_a_run_is_the_reference_of_the_mean_corruption_error(runs, tmp_path):
    record = evaluate(settings(runs[0], corruptions=True, images=100, reference=str(runs[1])), tmp_path)
    (run,) = record["runs"]
    assert run["reference"] == str(runs[1])
    assert record["reference"]["errors"].keys() == run["by"].keys()
    table = tables(record)[0].as_dict(Reference("other", record["reference"]["errors"], record["reference"]["clean"]))
    assert run["mce"] == table["mce"] is not None
    same = evaluate(settings(runs[1], corruptions=True, images=100, reference=str(runs[1])), tmp_path)
    assert same["runs"][0]["mce"] == pytest.approx(100)


def test_nothing_is_measured_twice(runs, tmp_path, monkeypatch):
    measured = []
    original = measuring.right_predictions
    stop_after = [4]

    def counted(loaded, images):
        if len(measured) == stop_after[0]:
            raise KeyboardInterrupt
        measured.append([run.folder for run in loaded])
        return original(loaded, images)

    monkeypatch.setattr(measuring, "right_predictions", counted)
    chosen = {"corruptions": True, "only": ("contrast",), "images": 50}
    with pytest.raises(KeyboardInterrupt):
        evaluate(settings(runs[0], **chosen), tmp_path)
    stop_after[0] = -1
    one = evaluate(settings(runs[0], **chosen), tmp_path)
    assert measured == [[runs[0]]] * 6  # the clean images and five severities
    both = evaluate(settings(*runs, **chosen), tmp_path)
    assert measured[6:] == [[runs[1]]] * 6
    assert both["runs"][0] == one["runs"][0]
    chosen["seed"] = 1
    evaluate(settings(*runs, **chosen), tmp_path)
    assert measured[12:] == [list(runs)] * 5  # the clean images are the same
    spoiled = max((tmp_path / PIECES).iterdir(), key=lambda file: file.stat().st_mtime_ns)
    spoiled.write_bytes(spoiled.read_bytes()[:-1])
    with pytest.raises(InputError, match=spoiled.name):
        evaluate(settings(*runs, **chosen), tmp_path)


@pytest.mark.slow
def test_jobs_change_nothing(runs, tmp_path):
    chosen = {"corruptions": True, "only": ("fog",), "images": 20}
    alone, together = (
        evaluate(Evaluation(runs=runs, device="cpu", jobs=jobs, **chosen), tmp_path / str(jobs)) for jobs in (1, 2)
    )
    assert alone["runs"] == together["runs"]


def test_images_in_files_are_corrupted_after_they_are_resized(streamed, tmp_path):
    run, _ = streamed
    record = evaluate(settings(run, corruptions=True, only=("gaussian_noise",)), tmp_path)
    loaded = load_run(run)
    ((views, labels),) = loaded.task.splits.test.pixels(100)
    assert views.shape == (16, 8, 8, 3)
    for severity, accuracy in zip(SEVERITIES, record["runs"][0]["by"]["gaussian_noise"], strict=True):
        images = (corrupt(views, "gaussian_noise", severity), labels)
        assert accuracy == 100 * float(right_predictions([loaded], [images])[0].float().mean())
    assert record["runs"][0]["clean"] == loaded.result.test_accuracy
    half = evaluate(settings(run, corruptions=True, only=("fog",), images=4), tmp_path)
    assert half["samples"] == 4
    chosen = measuring.spread(loaded.task.splits.test, 4)
    assert chosen.labels.tolist() == [0, 0, 1, 1]  # of a folder that comes class by class


# -- published sets ---------------------------------------------------------------------------------------------------


def write_arrays(folder, images, labels, names=SOME):
    folder.mkdir()
    for name in names:
        np.save(folder / f"{name}.npy", np.concatenate([corrupt(images, name, severity) for severity in SEVERITIES]))
    np.save(folder / "labels.npy", np.tile(labels, 5))
    return folder


def write_folders(folder, data, names=("fog",), inside="weather"):
    """The images of a folder's test part, at five severities that are all the images themselves."""
    for name in names:
        for severity in SEVERITIES:
            shutil.copytree(data / "test", folder / inside / name / str(severity))
    return folder


def test_arrays_as_cifar_10_c_has_them(runs, tmp_path):
    test = load_run(runs[0]).task.splits.test.samples
    folder = write_arrays(tmp_path / "C", test.images, test.labels)
    read = evaluate(settings(*runs, corrupted=folder), tmp_path / "read")
    made = evaluate(settings(*runs, corruptions=True, only=SOME), tmp_path / "made")
    assert [run["by"] for run in read["runs"]] == [run["by"] for run in made["runs"]]
    assert read["differences"] == made["differences"]
    assert read["runs"][0]["source"] == f"read from {folder}"
    some = evaluate(settings(runs[0], corrupted=folder, only=("contrast",), images=100), tmp_path / "read")
    assert list(some["runs"][0]["by"]) == ["contrast"]
    before = read["runs"][0]["by"]["contrast"]
    np.save(folder / "contrast.npy", np.zeros((5 * 797, 8, 8, 1), np.uint8))
    again = evaluate(settings(*runs, corrupted=folder), tmp_path / "read")
    assert again["runs"][0]["by"]["contrast"] != before  # the file is another


def test_folders_as_imagenet_c_has_them(streamed, tmp_path):
    run, data = streamed
    folder = write_folders(tmp_path / "C", data)
    record = evaluate(settings(run, corrupted=folder), tmp_path / "out")
    assert record["runs"][0]["by"] == {"fog": [record["runs"][0]["clean"]] * 5}  # the test images themselves
    arrays = np.stack([np.asarray(Image.open(file)) for file in sorted((data / "test").glob("*/*.png"))])
    labels = np.repeat([0, 1], 8)
    other = write_arrays(tmp_path / "arrays", torch.from_numpy(arrays), labels, ("contrast",))
    found = evaluate(settings(run, corrupted=other), tmp_path / "out")
    assert list(found["runs"][0]["by"]) == ["contrast"]


@pytest.mark.parametrize("kept", ["memory", "files"])
def test_a_class_folder_of_another_name_is_named(streamed, tmp_path, kept):
    run, data = streamed
    if kept == "memory":
        run = tmp_path / "run"
        train(RunConfig.of(data=str(data), epochs=1, sparsity=0.5, model="digitnet", batch_size=8), run)
    folder = write_folders(tmp_path / "C", data)
    read = evaluate(settings(run, corrupted=folder), tmp_path / "out")
    assert read["runs"][0]["by"] == {"fog": [read["runs"][0]["clean"]] * 5}
    (folder / "weather" / "fog" / "3" / "dog").rename(folder / "weather" / "fog" / "3" / "dingo")
    with pytest.raises(InputError, match=r"dingo' is of no class that is known"):
        evaluate(settings(run, corrupted=folder), tmp_path / "out")


@pytest.mark.parametrize(
    ("data", "names", "known"),
    [
        ("imagenet", ["tench, Tinca tinca", "goldfish"], None),  # whose folders are called by synsets, in this order
        ("imagenet", ["n01440764", "n01443537"], ("n01440764", "n01443537")),
        ("pets", ["cat", "dog"], ("cat", "dog")),
    ],
)
def test_classes_of_tables_are_named_by_their_folders(tmp_path, data, names, known):
    features = {"info": {"features": {"label": {"names": names}}}}
    for part in ("train", "test"):
        write_table(tmp_path / data / f"{part}.parquet", [0, 1], metadata={"huggingface": json.dumps(features)})
    chosen = Dataset(data=data if data == "imagenet" else str(tmp_path / data), data_dir=tmp_path, image_size=8)
    task = image_file_task(chosen, model="digitnet", seed=0, label_noise=0.0, label_smoothing=0.0)
    assert task.class_names == known


def test_published_images_of_another_size_are_refused(runs, tmp_path):
    images = torch.zeros(10, 9, 9, 1, dtype=torch.uint8)
    folder = write_arrays(tmp_path / "C", images, np.arange(10), ("contrast",))
    with pytest.raises(InputError, match="corrupted images are 9x9x1 and those of the run 8x8x1"):
        evaluate(settings(runs[0], corrupted=folder), tmp_path / "out")


def test_runs_on_other_images_are_not_compared(runs, streamed, tmp_path):
    with pytest.raises(InputError, match="is tested on other images than"):
        evaluate(settings(runs[0], streamed[0], corruptions=True), tmp_path)


def test_the_errors_of_alexnet_are_for_imagenet_c_alone(runs, tmp_path):
    test = load_run(runs[0]).task.splits.test.samples
    folder = write_arrays(tmp_path / "C", test.images, test.labels)
    with pytest.raises(InputError, match=r"which '.*C' is not: give a run as --reference"):
        evaluate(settings(runs[0], corrupted=folder, reference=ALEXNET), tmp_path / "out")


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ({}, "got no run"),
        ({"runs": ("a", "./a")}, "given twice"),
        ({"runs": ("a",), "corruptions": True, "corrupted": "b"}, "give one of the two"),
        ({"runs": ("a",), "corruptions": True, "only": ("fogg",)}, "unknown corruption 'fogg'"),
        ({"runs": ("a",), "only": ("fog",)}, "--only is of corruptions"),
        ({"runs": ("a",), "reference": "b"}, "--reference is of corruptions"),
        ({"runs": ("a",), "corruptions": True, "reference": ALEXNET}, "those on ImageNet-C"),
        ({"runs": ("a",), "images": 0}, "--images"),
        ({"runs": ("a",), "jobs": 0}, "--jobs"),
    ],
)
def test_settings_that_cannot_be_measured_are_refused(chosen, told, tmp_path):
    paths = {name: tmp_path / chosen[name] for name in ("corrupted",) if name in chosen}
    runs = tuple(tmp_path / run for run in chosen.get("runs", ()))
    with pytest.raises(InputError, match=told):
        Evaluation(**{**chosen, **paths, "runs": runs, "device": "cpu"}).resolved()
