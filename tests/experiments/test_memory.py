"""Evaluations take no more samples at once than fit into the memory that there is."""

import pytest
import torch
from torch import nn

from flatsparse.common import memory as system_memory
from flatsparse.common.errors import InputError
from flatsparse.common.memory import free_memory
from flatsparse.experiments.run import memory
from flatsparse.experiments.run.build import build
from flatsparse.experiments.run.config import RunConfig, change
from flatsparse.experiments.run.evaluation import evaluate, worst_case_increase
from flatsparse.experiments.run.memory import as_bytes, sample_bytes, samples_at_once
from flatsparse.experiments.run.resolve import resolve

RUN = RunConfig.of(train_size=200, epochs=1, device="cpu")


@pytest.fixture(scope="module")
def parts():
    return build(resolve(RUN))


def with_memory(parts, text):
    return change(parts.run, memory=text)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("8GB", 8 * 2**30), ("500 MB", 500 * 2**20), ("1.5g", 3 * 2**29), ("2 KiB", 2048), ("77", 77), ("1TB", 2**40)],
)
def test_amounts_of_memory(text, wanted):
    assert as_bytes(text) == wanted


@pytest.mark.parametrize("text", ["", "much", "-1GB", "0GB", "1 GB 2", "GB", "1e9", "nan"])
def test_what_is_no_amount_of_memory(text):
    with pytest.raises(InputError, match=r"--memory '.*' is no amount of memory: give e\.g\. 8GB"):
        as_bytes(text)


def test_a_small_memory_takes_fewer_samples_and_a_large_one_the_usual_number(parts):
    split = parts.task.splits.test
    one = sample_bytes(parts.task, parts.model, split)

    def count(text, **how):
        return samples_at_once(with_memory(parts, text), parts.task, parts.model, split, **how)

    assert count("64GB") == min(memory.USUAL, len(split))
    assert count(f"{one * 7}") == 7
    assert count("1") == 1
    assert count(f"{one * 7}", gradients=True) < 7  # a forward pass that is kept takes more


def test_the_memory_of_a_sample_grows_with_the_network(parts):
    split = parts.task.splits.test

    def wide(width):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    small, large = (sample_bytes(parts.task, wide(width), split) for width in (64, 6400))
    assert large > 10 * small
    assert large >= 3 * 6400 * 4  # inputs, outputs and what is added to them


def test_measuring_the_memory_changes_neither_the_network_nor_what_it_draws(parts):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 10)).train()
    model[3].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    sample_bytes(parts.task, model, parts.task.splits.test, gradients=True)
    assert torch.equal(torch.rand(3), wanted)
    assert [module.training for module in model] == [True, True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_scores_are_the_same_up_to_rounding_however_many_samples_fit(parts):
    one = sample_bytes(parts.task, parts.model, parts.task.splits.test)
    kept = parts.run
    try:
        parts.run = with_memory(parts, "64GB")
        whole, rise = evaluate(parts, parts.task.splits.test), worst_case_increase(parts)
        parts.run = with_memory(parts, f"{5 * one}")
        few, few_rise = evaluate(parts, parts.task.splits.test), worst_case_increase(parts)
    finally:
        parts.run = kept
    assert few.scores == whole.scores
    assert few.loss == pytest.approx(whole.loss, rel=1e-5)
    assert few_rise == pytest.approx(rise, rel=1e-3)


def test_free_memory_is_within_the_limit_of_the_control_group(tmp_path, monkeypatch):
    limit, used = tmp_path / "memory.max", tmp_path / "memory.current"
    monkeypatch.setattr(system_memory, "LIMITS", (limit, used))
    whole = free_memory("cpu")  # no such files
    assert whole > 2**20
    limit.write_text("max\n")
    used.write_text("1000\n")
    assert free_memory("cpu") == pytest.approx(whole, rel=0.2)
    limit.write_text("3000000\n")
    assert free_memory("cpu") == 2_999_000
    used.write_text("4000000\n")  # what the group holds as cache can be more for a moment
    assert free_memory("cpu") == 0
    limit.write_text("odd\n")
    assert free_memory("cpu") > 2**20
