"""Batches that are computed in parts."""

import copy
import itertools

import pytest
import torch

from flatsparse.common.errors import InputError
from flatsparse.common.tensor_files import load_tensors
from flatsparse.experiments.data.vocabulary import PADDING
from flatsparse.experiments.grid.store import key
from flatsparse.experiments.recipes import load
from flatsparse.experiments.reproduce.select import cells_of
from flatsparse.experiments.run import loop
from flatsparse.experiments.run.build import build
from flatsparse.experiments.run.config import RunConfig, change
from flatsparse.experiments.run.epoch import take_step
from flatsparse.experiments.run.resolve import resolve

SMALL = RunConfig.of(train_size=90, validation_size=50, batch_size=32, epochs=2, sparsity=0.8, method="rigl", every=2)
NET = """
from torch import nn

def net(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, classes))
"""


@pytest.fixture
def run(tmp_path):
    """A run of a network without batch norm, whose statistics are of a part."""
    (tmp_path / "net.py").write_text(NET)
    return change(SMALL, model=f"{tmp_path / 'net.py'}:net")


def weights_of(folder):
    return load_tensors(folder / "model.safetensors")[0]


@pytest.mark.parametrize("sharpness", ["none", "s2sam", "sam", "looksam", "stale"])
def test_parts_take_the_steps_of_the_whole_batch(tmp_path, run, sharpness):
    run = change(run, sharpness=sharpness, rho=0.1)
    results = {parts: loop.train(change(run, accumulate=parts), tmp_path / str(parts)) for parts in (None, 1, 4)}
    whole, one, four = (weights_of(tmp_path / str(parts)) for parts in (None, 1, 4))
    assert all(torch.equal(whole[name], one[name]) for name in whole)
    assert key(run) == key(change(run, accumulate=1)) != key(change(run, accumulate=4))
    assert all(torch.allclose(whole[name], four[name], atol=1e-5) for name in whole)
    assert results[4].steps == results[None].steps == 2 * 3  # of 32, 32 and 26 images, so that parts differ in size
    assert results[4].gradient_evaluations == results[None].gradient_evaluations
    assert results[4].flops == results[None].flops
    losses = [(tmp_path / str(parts) / "metrics.jsonl").read_text().split('"train_loss": ')[1] for parts in (None, 4)]
    assert float(losses[0].split(",")[0]) == pytest.approx(float(losses[1].split(",")[0]), rel=1e-5)


def test_tokens_are_shared_out_too(tmp_path):
    text = RunConfig.of(
        data="numbers", train_size=80, batch_size=320, epochs=1, lr=1e-3, optimizer="adamw", method="mest"
    )
    whole, parts = (build(resolve(change(text, accumulate=accumulate))) for accumulate in (None, 4))
    assert parts.run.optim.part_size == 80
    group = list(itertools.islice(parts.task.splits.train.batches(80, seed=0), 4))
    parts.model.eval()  # no dropout
    model = copy.deepcopy(parts.model)
    take_step(parts, group)
    sums, tokens = [], 0
    for batch in group:  # the mean over all tokens, whatever the lengths of the sentences
        counted = int((batch.content.target[:, 1:] != PADDING).sum())
        sums.append(parts.task.loss(model, batch.content) * counted)
        tokens += counted
    (sum(sums) / tokens).backward()
    masked = parts.training.zeroing()
    for p, plain in zip(parts.model.parameters(), model.parameters(), strict=True):
        gradient = masked[p](plain.grad) if p in masked else plain.grad
        assert torch.allclose(p.grad, gradient, atol=1e-6)
    assert abs(whole.steps_per_epoch - parts.steps_per_epoch) <= 1
    assert loop.train(change(text, accumulate=4), tmp_path / "run").steps == parts.steps_per_epoch


@pytest.mark.parametrize(("accumulate", "line"), [(5, "does not divide --batch-size 32"), (0, "--accumulate 0")])
def test_unequal_parts_are_refused(accumulate, line):
    with pytest.raises(InputError, match=line):
        resolve(change(SMALL, accumulate=accumulate))


def test_a_recipe_computes_its_batches_in_the_fewest_equal_parts_that_fit():
    whole = load("table2").cells("paper")
    parts = cells_of(load("table2"), "paper", controls=False, at_once=200)
    for before, after in zip(whole, parts, strict=True):
        optim = after.run.optim
        assert change(after.run, accumulate=None) == before.run
        assert optim.part_size <= 200 < before.run.optim.batch_size
        assert all(optim.batch_size % n or optim.batch_size / n > 200 for n in range(1, optim.parts))
    assert cells_of(load("table2"), "paper", controls=False, at_once=4096) == list(whole)
