"""Finished runs after changes of their weights: ``flatsparse evaluate --after``."""

import copy
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flatsparse.common.errors import InputError
from flatsparse.common.json_files import read_json, write_json
from flatsparse.experiments.evaluate import after as measuring
from flatsparse.experiments.evaluate.after_picture import after_picture
from flatsparse.experiments.evaluate.after_table import AfterTable, sentences
from flatsparse.experiments.evaluate.changes import AS_TRAINED, Change, changed
from flatsparse.experiments.evaluate.fine_tuning import half
from flatsparse.experiments.evaluate.record import RECORD, evaluate
from flatsparse.experiments.evaluate.settings import Evaluation
from flatsparse.experiments.evaluate.text import shown
from flatsparse.experiments.run.config import RunConfig
from flatsparse.experiments.run.load import load_run
from flatsparse.experiments.run.loop import train
from flatsparse.experiments.stats import paired_difference

CHANGES = ("int4", "int8-dynamic", "prune30", "noise0.4", "finetune")
QUICK = {"train_size": 200, "validation_size": 50, "epochs": 4, "sparsity": 0.5}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Four finished runs on digits: two seeds, plain and with S²-SAM."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        for sharpness in ("none", "s2sam"):
            train(RunConfig.of(seed=seed, sharpness=sharpness, **QUICK), folder / f"{sharpness}{seed}")
    return tuple(folder / name for name in ("none0", "none1", "s2sam0", "s2sam1"))


@pytest.fixture(scope="module")
def record(runs, tmp_path_factory):
    return evaluate(Evaluation(runs, after=CHANGES, jobs=1), tmp_path_factory.mktemp("out"))


def accuracy(run, model):
    split = run.task.splits.test
    batch = next(split.batches(len(split)))
    with torch.no_grad():
        return 100 * float((model.eval()(batch.content[0]).argmax(1) == batch.content[1]).double().mean())


def test_scores_are_those_of_the_changed_networks(runs, record):
    run = load_run(runs[0])
    measured = record["runs"][0]["after"]
    assert measured[AS_TRAINED]["scores"]["accuracy"] == pytest.approx(run.result.test_accuracy)
    assert measured[AS_TRAINED]["validation"]["accuracy"] == pytest.approx(run.result.validation_accuracy)
    for name in ("int4", "prune30"):
        ((_, model),) = changed(run, Change.named(name))
        assert measured[name]["scores"]["accuracy"] == pytest.approx(accuracy(run, model))
    draws = [accuracy(run, model) for _, model in changed(run, Change.named("noise0.4"))]
    assert len(set(draws)) > 1, "draws differ"
    assert measured["noise0.4"]["scores"]["accuracy"] == pytest.approx(statistics.fmean(draws))


def test_fine_tuning_keeps_the_masks_and_forgets_the_other_classes(runs, record):
    run = load_run(runs[0])
    before = copy.deepcopy(run.model.state_dict())
    seen = []
    for name, model in changed(run, Change.named("finetune")):
        weights = dict(model.named_parameters())
        assert all(not weights[layer].detach()[~mask].any() for layer, mask in run.masks.items())
        seen.append((name, accuracy(run, model)))
    assert all(value.equal(before[name]) for name, value in run.model.state_dict().items()), "the run is left as it was"
    measured = record["runs"][0]["after"]
    assert seen == [
        (name, pytest.approx(measured[name]["scores"]["accuracy"])) for name in ("finetune", "finetune back")
    ]
    labels = half(run.task.splits.train).labels
    assert labels.unique().tolist() == [0, 1, 2, 3, 4]
    assert seen[0][1] < measured[AS_TRAINED]["scores"]["accuracy"]


def test_a_start_of_its_own_for_each_seed_makes_no_arm(runs):
    def started(starts):
        loaded = map(load_run, runs)  # of two seeds, plain, then with S²-SAM
        own = [
            replace(one, run=replace(one.run, init=start and Path(start), init_sha256=start and start[-1]))
            for one, start in zip(loaded, starts, strict=True)
        ]
        return measuring.arms(own)

    plain, ours = ({"sharpness": name} for name in ("none", "s2sam"))
    assert started([None] * 4) == [plain, plain, ours, ours]
    assert started(["d0", "d1", "d0", "d1"]) == [plain, plain, ours, ours]
    assert started(["a/d0", "a/d0", "b/d0", "b/d0"]) == [plain, plain, ours, ours], "the same weights in two places"
    other = started(["d0", "d1", "d2", "d3"])
    assert [one["init"] for one in other] == ["d0", "d1", "d2", "d3"]
    assert [one["init"] for one in started([None, None, "d0", "d0"])] == [None, None, "d0", "d0"]


def test_arms_are_compared_by_seed(record):
    table = AfterTable.of(record)
    assert table.arms == ("plain", "S²-SAM")
    own = {run["seed"]: run["after"]["int4"]["scores"]["accuracy"] for run in record["runs"][2:]}
    base = {run["seed"]: run["after"]["int4"]["scores"]["accuracy"] for run in record["runs"][:2]}
    assert table.gain(table.arms[1], "int4") == paired_difference([own[0], own[1]], [base[0], base[1]])
    as_trained = {run["seed"]: run["after"][AS_TRAINED]["scores"]["accuracy"] for run in record["runs"][:2]}
    assert table.lost("plain", "int4") == {seed: as_trained[seed] - base[seed] for seed in (0, 1)}
    validation = AfterTable.of(record, validation=True)
    first = record["runs"][0]["after"]["int4"]["validation"]["accuracy"]
    assert validation.values["plain", "int4"][0] == first
    (_, (head, rows)), (_, (_, lost)) = shown(record, pages=True)
    assert head == ["after", "plain", "S²-SAM", "S²-SAM − plain"]
    assert [row[0] for row in rows] == record["changes"]
    assert [row[0] for row in lost] == record["changes"][1:]
    assert any("plain 2, S²-SAM 2" in text for text in sentences(record))
    assert len(after_picture(table).axes) == 2


def test_nothing_is_measured_twice_and_jobs_change_nothing(runs, record, tmp_path, monkeypatch):
    first = evaluate(Evaluation(runs[:1], after=("int4", "noise0.4"), jobs=2), tmp_path)
    assert first["runs"][0]["after"]["noise0.4"] == record["runs"][0]["after"]["noise0.4"]
    measured = []
    original = measuring.Piece.run
    monkeypatch.setattr(measuring.Piece, "run", lambda piece: (measured.append(piece.change.name), original(piece)))
    second = evaluate(Evaluation(runs[:1], after=("int4", "prune30"), jobs=1), tmp_path)
    assert measured == ["prune30"]
    assert second["runs"][0]["after"]["int4"] == first["runs"][0]["after"]["int4"]
    assert read_json(tmp_path / RECORD, dict)["changes"] == [AS_TRAINED, "int4", "prune30"]


def test_a_piece_of_another_change_or_of_another_form_is_named(runs, tmp_path):
    settings = Evaluation(runs[:1], after=("int4", "noise0.4"), images=20, jobs=1)
    evaluate(settings, tmp_path)
    pieces = sorted((tmp_path / "pieces").iterdir())
    whole, found = pieces[0].read_bytes(), read_json(pieces[0])
    ((name, measured),) = found["after"].items()
    odd = [read_json(pieces[1])]
    odd += [{**found, "after": {name: {**measured, **part}}} for part in ({"scores": 1}, {"loss": None})]
    odd += [{**found, "after": {}}]
    for value in odd:
        write_json(pieces[0], value)
        with pytest.raises(InputError, match=rf"{pieces[0].name}' is damaged"):
            evaluate(settings, tmp_path)
    pieces[0].write_bytes(whole)
    evaluate(settings, tmp_path)


@pytest.mark.parametrize(
    "name",
    ["int1", "int4.5", "finetune0", "finetune1.5", "prune0", "prune100", "noise0", "noise", "prune-3", "quantize"],
)
def test_unknown_changes_are_refused(runs, name):
    with pytest.raises(InputError, match=f"--after got '{name}': wanted one of int2"):
        Evaluation(runs, after=(name,)).resolved()


def test_settings_that_do_not_fit_are_refused(runs):
    with pytest.raises(InputError, match="evaluate them apart"):
        Evaluation(runs, after=("int4",), corruptions=True).resolved()
    with pytest.raises(InputError, match="int4 twice"):
        Evaluation(runs, after=("int4", "int4")).resolved()
