"""Worker processes that start anew, as on Windows and macOS, read what forked ones do."""

import pytest

from flatsparse.common.errors import InputError
from flatsparse.experiments.data import loading
from flatsparse.experiments.tasks.settings import Dataset
from flatsparse.experiments.tasks.user import user_task

from ..own_tasks import NOISY, SEQUENCES, STREAM, written

LOCAL = "    class Hidden(Noisy):\n        pass\n    return Task(model, Hidden(48, 0, True)"


def batches(spec, workers):
    split = user_task(Dataset(task=spec, workers=workers), seed=0, label_noise=0.0, label_smoothing=0.0).splits.train
    return [batch.content for batch in split.batches(16, seed=3, epoch=1)]


@pytest.fixture
def spawn(monkeypatch):
    monkeypatch.setattr(loading, "START", "spawn")


@pytest.mark.parametrize("text", [NOISY, SEQUENCES, STREAM], ids=["noisy", "sequences", "stream"])
def test_batches_of_a_user_s_file_are_the_same(spawn, tmp_path, text):
    spec = written(tmp_path, text)
    here, there = batches(spec, 0), batches(spec, 1)
    assert len(here) > 1
    assert all(len(a) == len(b) and all(map(equal, a, b)) for a, b in zip(here, there, strict=True))


def equal(a, b):
    return bool((a == b).all())


def test_data_that_cannot_be_sent_are_a_line(spawn, tmp_path):
    spec = written(tmp_path, NOISY, "    return Task(model, Noisy(48, 0, True)", LOCAL)
    assert batches(spec, 0)
    with pytest.raises(InputError, match=r"mine.py:task \(train\)' cannot be sent .*Hidden.*--workers 0"):
        batches(spec, 1)
