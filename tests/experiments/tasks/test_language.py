import itertools
import math

import pytest
import torch

from flatsparse.common.json_files import read_json
from flatsparse.experiments.data.vocabulary import END
from flatsparse.experiments.run import loop
from flatsparse.experiments.run.config import RunConfig
from flatsparse.experiments.run.load import load_run
from flatsparse.experiments.tasks.language import windows
from tests.experiments.tasks.texts import write_text


def test_every_token_of_a_text_is_predicted_once():
    lines = [[5, 6, 7], [8], [9, 10]]
    split = windows(lines, 4)
    text = [5, 6, 7, END, 8, END, 9, 10, END]
    rows = [batch.content.target[0].tolist() for batch in split.batches(1)]
    assert sorted(itertools.chain(*(row[1:] for row in rows))) == sorted(text)
    assert {tuple(row) for row in rows} == {(END, 5, 6, 7, END), (END, 8, END, 9, 10), (10, END)}
    assert split.tokens == len(text)


@pytest.mark.slow
def test_a_text_is_modelled_below_the_perplexity_of_chance(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = RunConfig.of(
        data=str(write_text(tmp_path / "text")),
        vocabulary=100,
        epochs=2,
        batch_size=130,
        optimizer="adamw",
        lr=2e-3,
        method="set",
        sparsity=0.5,
        sharpness="s2sam",
    )
    result = loop.train(run, tmp_path / "run")
    written = read_json(tmp_path / "run" / "result.json")
    assert list(written["scores"]) == ["perplexity", "token accuracy"]
    assert (written["better"], written["model"]) == ("lower", "gpt2_tiny")
    assert result.value == pytest.approx(math.exp(result.test_loss))
    assert 1 < result.value < 15  # of a hundred tokens
    read = load_run(tmp_path / "run")
    for size in (129, 5000):
        test = read.task.splits.test
        with torch.no_grad():
            assert read.task.evaluate(read.model, test.batches(size), len(test)).loss == pytest.approx(result.test_loss)
    again = loop.train(run, tmp_path / "again")
    assert again.scores == result.scores
