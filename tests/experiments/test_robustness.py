"""How a finished run does on corrupted images, and the table and errors that come of it."""

import json
import statistics

import pytest

from flatsparse.common.errors import InputError
from flatsparse.experiments.data.corruptions import CATEGORIES, CORRUPTIONS, MAIN, corrupt
from flatsparse.experiments.robustness import robustness
from flatsparse.experiments.robustness_table import (
    ALEXNET,
    Reference,
    RobustnessTable,
    corruption_error,
    mean_corruption_error,
    relative_mean_corruption_error,
)
from flatsparse.experiments.run.config import RunConfig
from flatsparse.experiments.run.load import load_run
from flatsparse.experiments.run.loop import train

HALF = dict.fromkeys(MAIN, (0.5,) * 5)


def test_robustness_is_the_accuracy_on_the_same_corrupted_images(tmp_path, monkeypatch):
    train(RunConfig.of(train_size=500, validation_size=50, epochs=6, sparsity=0.5, sharpness="s2sam"), tmp_path / "run")
    finished = load_run(tmp_path / "run")
    found = robustness(finished)
    assert found["clean"] == finished.result.test_accuracy
    assert list(found["by"]) == list(CORRUPTIONS)
    assert found["mean"] == pytest.approx(statistics.fmean(x for row in found["by"].values() for x in row))
    assert found["by"]["gaussian_noise"][4] < found["clean"]
    test = finished.task.splits.test
    images = corrupt(test.samples.images, "contrast", 5)
    mean, std = 255 * test.mean, 255 * test.std
    guesses = finished.model(((images - mean) / std).permute(0, 3, 1, 2)).argmax(1)
    right = (guesses == test.samples.labels).float().mean()
    assert found["by"]["contrast"][4] == pytest.approx(100 * float(right), abs=0.13)  # one image of 797
    some = {name: CORRUPTIONS[name] for name in ("shot_noise", "fog", "contrast")}
    monkeypatch.setattr("flatsparse.experiments.robustness.CORRUPTIONS", some)
    assert robustness(finished)["by"] == {name: found["by"][name] for name in some}


def test_a_run_on_text_is_refused(tmp_path):
    train(
        RunConfig.of(
            data="numbers", train_size=20, validation_size=0, batch_size=20, epochs=1, sparsity=0.5, method="static"
        ),
        tmp_path / "p",
    )
    with pytest.raises(InputError, match="not a run on images but on"):
        robustness(load_run(tmp_path / "p"))


def test_mean_corruption_error_by_hand():
    errors = HALF | {"fog": (0.1, 0.1, 0.2, 0.3, 0.3), "saturate": (1.0,) * 5}
    reference = HALF | {"fog": (0.2, 0.3, 0.4, 0.5, 0.6), "snow": (0.2, 0.2, 0.2, 0.2, 0.45)}
    assert corruption_error(errors["fog"], reference["fog"]) == pytest.approx(100 * 1.0 / 2.0)
    assert mean_corruption_error(errors, reference) == pytest.approx((13 * 100 + 50 + 100 * 2.5 / 1.25) / 15)
    by_mean = {name: (statistics.fmean(row),) for name, row in reference.items()}
    assert mean_corruption_error(errors, by_mean) == pytest.approx(mean_corruption_error(errors, reference))


def test_relative_mean_corruption_error_by_hand():
    errors = HALF | {"fog": (0.2, 0.2, 0.3, 0.4, 0.4)}  # 0.1 more than on clean images in the mean
    expected = (14 * (0.3 / 0.1) + 0.1 / 0.1) / 15
    assert relative_mean_corruption_error(errors, 0.2, HALF, 0.4) == pytest.approx(100 * expected)


def test_alexnet_is_its_own_reference():
    assert list(ALEXNET.errors) == list(MAIN)
    assert mean_corruption_error(ALEXNET.errors, ALEXNET.errors) == pytest.approx(100)
    assert max(ALEXNET.errors, key=lambda name: ALEXNET.errors[name][0]) == "impulse_noise"
    assert min(ALEXNET.errors, key=lambda name: ALEXNET.errors[name][0]) == "brightness"
    assert all(error[0] > ALEXNET.clean for error in ALEXNET.errors.values())


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (lambda: mean_corruption_error({k: v for k, v in HALF.items() if k != "fog"}, HALF), "the errors lack fog"),
        (lambda: mean_corruption_error(HALF, {"fog": (0.5,)}), "the reference lack gaussian_noise"),
        (lambda: mean_corruption_error(HALF, HALF | {"fog": (0.0,) * 5}), "reference's error is 0"),
        (lambda: relative_mean_corruption_error(HALF, 0.2, HALF, 0.5), "reference's error is 0"),
        (lambda: RobustnessTable(90.0, {"fog": (80.0,) * 4}, "here"), "'fog' has 4 accuracies"),
        (lambda: RobustnessTable(90.0, {}, "here"), "needs a corruption"),
    ],
)
def test_errors_that_cannot_be_computed_are_refused(compute, message):
    with pytest.raises(InputError, match=message):
        compute()


def test_the_table_has_each_corruption_category_and_mean_once():
    by = {name: tuple(60.0 - place - severity for severity in range(5)) for place, name in enumerate(CORRUPTIONS)}
    table = RobustnessTable(90.0, by, "made here")
    record = table.as_dict(Reference("half", HALF, 0.25))
    assert json.loads(json.dumps(record)) == record
    assert record["mean"] == pytest.approx(58 - 9)
    assert record["mean_of_main"] == pytest.approx(58 - 7)
    assert record["categories"] == pytest.approx({"noise": 57, "blur": 53.5, "weather": 49.5, "digital": 45.5})
    assert record["mce"] == pytest.approx(100 * 0.49 / 0.5)
    assert record["relative_mce"] == pytest.approx(100 * (0.49 - 0.1) / 0.25)
    lines = table.markdown(Reference("half", HALF, 0.25)).splitlines()
    assert {line.count("|") for line in lines} == {10}
    assert lines[0] == "| corruption | 1 | 2 | 3 | 4 | 5 | mean | below clean | CE, half |"
    assert lines[2].split("|")[7].strip() == "90.00"
    assert lines[3] == "| gaussian_noise | 60.00 | 59.00 | 58.00 | 57.00 | 56.00 | 58.00 | 32.00 | 84.0 |"
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        *("clean", *CORRUPTIONS),
        *(f"mean, {category}" for category in CATEGORIES),
        *("mean of 15", "mean of 19"),
    ]
    assert lines[-2] == "| mean of 15 |  |  |  |  |  | 51.00 | 39.00 | 98.0 |"


def test_a_partial_table_has_no_mean_of_fifteen_and_no_mean_corruption_error():
    table = RobustnessTable(90.0, dict.fromkeys(CATEGORIES["noise"], (50.0,) * 5), "made here")
    record = table.as_dict(ALEXNET)
    assert record["lacking"] == list(MAIN[3:])
    assert record["mean_of_main"] is None
    assert "mce" not in record
    assert record["categories"] == {"noise": 50.0}
    lines = table.markdown(ALEXNET).splitlines()
    assert [line.split("|")[1].strip() for line in lines[-2:]] == ["mean, noise", "mean of 4"]
    assert lines[3].endswith(f"| {50 / 0.886428:.1f} |")


def test_an_error_that_cannot_be_divided_is_left_out():
    table = RobustnessTable(90.0, dict.fromkeys(MAIN, (50.0,) * 5), "made here")
    harmless = Reference("harmless", HALF | {"fog": (0.1,) * 5}, 0.2)  # fog makes it no worse
    record = table.as_dict(harmless)
    assert (record["mce"], record["relative_mce"]) == (pytest.approx((14 * 100 + 500) / 15), None)
    perfect = Reference("perfect", HALF | {"fog": (0.0,) * 5}, 0.0)
    assert table.as_dict(perfect)["mce"] is None
    rows = {row[0]: row[-1] for row in table.rows(perfect)}
    assert (rows["fog"], rows["snow"], rows["mean of 15"]) == ("", "100.0", "")


def test_a_table_is_the_reference_of_another():
    worse, better = (RobustnessTable(90.0, dict.fromkeys(MAIN, (at,) * 5), "made here") for at in (50.0, 75.0))
    record = better.as_dict(worse.as_reference("plain"))
    assert (record["reference"], record["mce"]) == ("plain", pytest.approx(50))
    assert record["relative_mce"] == pytest.approx(100 * 15 / 40)
