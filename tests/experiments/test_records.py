"""Results and epochs of runs as JSON and back."""

import dataclasses
import json

import pytest

from flatsparse.common.schema import schema_error
from flatsparse.experiments.run.progress import topology_warnings
from flatsparse.experiments.run.records import EPOCH_FORM, RESULT_FORM, EpochRecord, RunResult
from tests.experiments.results import run_result

EPOCH = EpochRecord(
    epoch=1,
    step=10,
    train_loss=1.0,
    train_accuracy=50.0,
    validation_loss=None,
    validation_accuracy=None,
    lr=0.1,
    sparsity=0.9,
    updates=0,
    churn=None,
    exploration=0.1,
    dead_filters=0.0,
    collapsed={},
)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "channels": 0.5,
            "data_set": {"name": "digits", "source": "scikit-learn", "fingerprint": "1234"},
            "above_chance": True,
        },
    ],
)
def test_a_result_is_the_same_after_a_round_trip(changes):
    result = dataclasses.replace(run_result(90.0), **changes)
    plain = json.loads(json.dumps(result.to_json()))
    assert schema_error(plain, RESULT_FORM) is None
    assert RunResult.from_json(plain) == result
    assert ("channels" in plain) == ("channels" in changes)


def test_a_result_that_is_older_than_some_keys_or_younger_than_this_version_is_read():
    plain = run_result(90.0).to_json()
    for younger in ("data_set", "above_chance", "rounds"):
        del plain[younger]
    plain["colour"] = "red"
    old = RunResult.from_json(plain)
    assert (old.rounds, old.data_set, old.above_chance) == (1, None, None)
    assert old.value == 90.0


def test_a_key_that_every_version_wrote_must_be_there():
    plain = run_result(90.0).to_json()
    del plain["steps"]
    with pytest.raises(TypeError, match="steps"):
        RunResult.from_json(plain)


def test_an_epoch_names_its_round_only_where_there_are_several():
    first = dataclasses.replace(EPOCH, round=0)
    assert "round" not in EPOCH.to_json()
    assert first.to_json()["round"] == 0
    for record in (EPOCH, first):
        plain = json.loads(json.dumps(record.to_json()))
        assert schema_error(plain, EPOCH_FORM) is None
        assert EpochRecord.from_json(plain) == record


@pytest.mark.parametrize(("updates", "told"), [(1, "1 update of the masks"), (2, "2 updates of the masks")])
def test_updates_that_changed_nothing_are_counted_in_words_that_agree(updates, told):
    (warning,) = topology_warnings(dataclasses.replace(EPOCH, updates=updates, churn=0.0), None)
    assert warning.startswith(f"{told} changed nothing")
