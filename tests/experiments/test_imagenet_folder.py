"""A tiny folder in the layout of ImageNet is driven through the command line, with images of every kind, whole and damaged."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from flatsparse.cli import main
from flatsparse.common.json_files import read_json
from flatsparse.experiments.run import loop
from flatsparse.experiments.run.progress import RunBar

CLASSES = ("n01440764", "n02102040")
KINDS = ("RGB", "L", "CMYK", "P", "I;16", "RGBA")
SETTINGS = [
    *("train", "--data", "imagenet", "--image-size", "32", "--workers", "0", "--model", "resnet20", "--device", "cpu"),
    *(
        "--method",
        "rigl",
        "--sparsity",
        "0.9",
        "--batch-size",
        "8",
        "--epochs",
        "3",
        "--label-smoothing",
        "0.1",
        "--warmup",
        "1",
    ),
]
SHORT = ["--epochs", "1", "--warmup", "0"]


def write_image(file, kind, number, shade):
    """An image of a kind and of a size of its own, brighter for one class than for the other."""
    size = (40 + 9 * (number % 4), 52 - 7 * (number % 3))
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 100, (*size, 3)).astype(np.uint8) + np.uint8(shade)
    if kind == "I;16":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(file.with_suffix(".png"))
    else:
        image = Image.fromarray(pixels).convert(kind)
        image.save(file.with_suffix(".png" if kind in ("P", "RGBA") else ".JPEG"))


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """The folder of local copies, with ImageNet: class folders for training, and a flat validation part beside a list."""
    folder = tmp_path_factory.mktemp("copies")
    place = folder / "imagenet"
    lines = ["ImageId,PredictionString"]
    (place / "val").mkdir(parents=True)
    for label, name in enumerate(CLASSES):
        (place / "train" / name).mkdir(parents=True)
        for number in range(12):
            write_image(place / "train" / name / f"{name}_{number}", KINDS[number % 6], number, 120 * label)
        for number in range(6):
            image = f"ILSVRC2012_val_{2 * number + label:08}"
            write_image(place / "val" / image, KINDS[number], 50 + number, 120 * label)
            lines.append(f"{image},{name} 1 2 3 4")
    (place / "LOC_val_solution.csv").write_text("\n".join(lines))
    return folder


def train(copies, out, *more):
    main([*SETTINGS, "--data-dir", str(copies), "--validation-size", "4", "--out", str(out), *more])
    return read_json(out / "result.json")


@pytest.fixture(scope="module")
def run(copies, tmp_path_factory):
    """A finished run."""
    out = tmp_path_factory.mktemp("runs") / "run"
    train(copies, out)
    return out


def test_images_of_every_kind_train_with_steps_and_a_cosine(copies, run, tmp_path):
    cosine = read_json(run / "result.json")
    steps = train(copies, tmp_path / "steps", "--lr-schedule", "step", "--milestones", "0.5", "0.8")
    rates = [
        [record["lr"] for record in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())]
        for folder in (run, tmp_path / "steps")
    ]
    for result, (first, *_, last) in zip((cosine, steps), rates, strict=True):
        assert result["data_set"]["name"] == "imagenet"
        assert result["sparsity"]["prunable"] == pytest.approx(0.9, abs=0.01)
        assert result["test_accuracy"] >= 50
        assert first > last >= 0
    assert rates[0] != rates[1]


def test_a_run_that_is_stopped_continues_as_if_it_had_not_been(copies, run, tmp_path, monkeypatch):
    def stopped(self, record):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(RunBar, "finished_epoch", stopped)
        with pytest.raises(SystemExit) as end:
            train(copies, tmp_path / "run")
    assert end.value.code == 130
    assert not (tmp_path / "run" / "result.json").is_file()
    resumed = train(copies, tmp_path / "run", "--resume")
    assert resumed["test_loss"] == read_json(run / "result.json")["test_loss"]
    weights = [load_file(folder / "model.safetensors") for folder in (run, tmp_path / "run")]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


def test_it_is_evaluated_measured_and_exported(run, tmp_path):
    main(["evaluate", str(run), "--corruptions", "--jobs", "1", "--only", "fog", "--out", str(tmp_path / "corrupted")])
    found = read_json(tmp_path / "corrupted" / "evaluation.json")["runs"][0]
    assert found["clean"] == read_json(run / "result.json")["test_accuracy"]
    assert len(found["by"]["fog"]) == 5
    published = tmp_path / "imagenet-c" / "weather" / "snow"
    for severity in range(1, 6):
        for name in CLASSES:
            (published / str(severity) / name).mkdir(parents=True)
            write_image(published / str(severity) / name / "0", "RGB", severity, 0)
    read = ["evaluate", str(run), "--corrupted", str(tmp_path / "imagenet-c"), "--jobs", "1"]
    main([*read, "--out", str(tmp_path / "read")])
    assert list(read_json(tmp_path / "read" / "evaluation.json")["runs"][0]["by"]) == ["snow"]
    chosen = "--points 3 --pairs 1 --images 8 --hessian-images 0 --jobs 1 --clip None --device cpu"
    main(["landscape", str(run), *chosen.split(), "--out", str(tmp_path / "landscape")])
    (surface,) = read_json(tmp_path / "landscape" / "landscape.json")["runs"]
    assert surface["images"] == 8
    main(["export", str(run), "--format", "dense", "masks", "--images", "8", "--out", str(tmp_path / "export")])
    assert (tmp_path / "export" / "dense.safetensors").is_file()


def test_class_folders_of_the_validation_part_are_read_as_well(copies, tmp_path):
    place = tmp_path / "copies" / "imagenet"
    shutil.copytree(copies / "imagenet", place)
    for file in sorted((place / "val").iterdir()):
        target = place / "val" / CLASSES[int(file.stem[-8:]) % 2]
        target.mkdir(exist_ok=True)
        file.rename(target / file.name)
    assert train(tmp_path / "copies", tmp_path / "run", *SHORT)["test_accuracy"] is not None


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return file.name


def spoil_training(place):
    return cut(place / "train" / CLASSES[0] / f"{CLASSES[0]}_0.JPEG")


def spoil_validation(place):
    return cut(place / "val" / "ILSVRC2012_val_00000001.JPEG")


def spoil_class(place):
    (place / "val" / "n99999999").mkdir()
    for file in list((place / "val").glob("*.*")):
        file.rename(place / "val" / "n99999999" / file.name)
    return "n99999999"


def spoil_text(place):
    file = place / "train" / CLASSES[1] / f"{CLASSES[1]}_1.JPEG"
    file.write_text("<html>not found</html>")
    return file.name


def spoil_floats(place):
    Image.fromarray(np.zeros((40, 40), np.float32)).save(place / "train" / CLASSES[1] / "float.tif")
    return "float.tif"


def spoil_list(place):
    with (place / "LOC_val_solution.csv").open("a") as stream:
        stream.write("\nILSVRC2012_val_00000099,n01440764 1 2 3 4")
    return "ILSVRC2012_val_00000099"


@pytest.mark.parametrize("spoil", [spoil_training, spoil_validation, spoil_class, spoil_text, spoil_floats, spoil_list])
def test_a_file_that_cannot_be_used_is_named_in_one_line(copies, tmp_path, capsys, spoil):
    shutil.copytree(copies / "imagenet", tmp_path / "copies" / "imagenet")
    name = spoil(tmp_path / "copies" / "imagenet")
    with pytest.raises(SystemExit) as end:
        train(tmp_path / "copies", tmp_path / "run", *SHORT)
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert said.count("\n") == 1
    assert said.startswith("flatsparse: error: ")
    assert name in said
