"""The moving average of a run's weights."""

import copy

import pytest
import torch
from torch import nn

import flatsparse as fs
from flatsparse.common.checkpoints import load_state
from flatsparse.common.errors import InputError
from flatsparse.common.tensor_files import load_tensors
from flatsparse.experiments.run import loop
from flatsparse.experiments.run.average import WeightAverage
from flatsparse.experiments.run.config import RunConfig, change
from flatsparse.experiments.run.load import load_run
from flatsparse.experiments.run.resolve import resolve
from tests.experiments.watchers import KillAfter, Killed

SMALL = RunConfig.of(train_size=64, validation_size=50, batch_size=16, epochs=3, sparsity=0.9, sharpness="s2sam")


def step(model, optimizer, average, training, images, classes):
    """Take a step on random images, and take it into the average."""
    due = training.due(training.steps_taken + 1)
    nn.functional.cross_entropy(model(torch.randn(images)), torch.randint(classes, images[:1])).backward()
    optimizer.step()
    optimizer.zero_grad()
    average.update(model, training.zeroing() if due else None)


def weights_of(folder):
    return load_tensors(folder / "model.safetensors")[0]


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_it_is_the_plain_average_and_zero_outside_the_masks(decay):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3))
    average = WeightAverage(model, decay)
    optimizer = fs.S2SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.1)
    training = fs.sparsify(model, optimizer, "set", sparsity=0.8, steps=40, every=3)
    plain = {}
    for t in range(20):
        step(model, optimizer, average, training, (8, 1, 8, 8), 3)
        share = min(decay, (1 + t) / (10 + t)) if t else 0.0  # of the t steps before
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                plain[name] = share * plain.get(name, 0.0) + (1 - share) * tensor.double()
                if name in training.masks:
                    plain[name] = plain[name] * training.masks[name]
            else:
                plain[name] = tensor.clone()
    for name, tensor in average.model.state_dict().items():
        assert torch.allclose(tensor.double(), plain[name].double(), rtol=1e-4, atol=1e-6), name
        if name in training.masks:
            assert not tensor[~training.masks[name]].any()


def test_what_removed_channels_leave_at_zero_is_zero_in_it_too():
    torch.manual_seed(0)
    model = fs.models.resnet18(num_classes=4)
    average = WeightAverage(model, 0.99)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = fs.sparsify(model, optimizer, "chex", channels=0.5, steps=8, every=2)
    for _ in range(6):
        step(model, optimizer, average, training, (4, 3, 32, 32), 4)
    names = {p: name for name, p in model.named_parameters()}
    averages = dict(average.model.named_parameters())
    vectors = 0
    for p, zero in training.zeroing().items():
        outside = zero(torch.ones_like(p)) == 0
        assert not averages[names[p]][outside].any()
        vectors += p.ndim == 1 and int(outside.sum())
    assert vectors  # such as biases of batch norm in pruned channels


def test_an_infinite_buffer_stays_what_it_is():
    model = nn.Linear(3, 2)
    model.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(4))
    average = WeightAverage(model, 0.9)
    for _ in range(3):
        average.update(model)
    assert torch.equal(average.model.mask, model.mask)


def test_a_restarted_average_forgets():
    model = nn.Linear(3, 2)
    average = WeightAverage(model, 0.9)
    average.update(model)
    average.restart()
    other = copy.deepcopy(model)
    nn.init.ones_(other.weight)
    average.update(other)
    assert torch.equal(average.model.weight, other.weight)


@pytest.mark.parametrize("method", ["rigl", "lrr"])
def test_an_average_of_decay_0_is_the_run_without_one_bit_for_bit(tmp_path, method):
    run = change(SMALL, method=method, epochs=2)
    plain, averaged = loop.train(run, tmp_path / "plain"), loop.train(change(run, ema=0.0), tmp_path / "ema")
    before, after = weights_of(tmp_path / "plain"), weights_of(tmp_path / "ema")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (plain.test_loss, plain.ball, plain.validation_loss) == (
        averaged.test_loss,
        averaged.ball,
        averaged.validation_loss,
    )


@pytest.mark.parametrize("batch_norm", ["training", "final"])
def test_the_average_is_what_is_evaluated_and_saved(tmp_path, batch_norm):
    run = change(SMALL, method="rigl", ema=0.99, batch_norm=batch_norm)
    result = loop.train(run, tmp_path / "run")
    saved, state = weights_of(tmp_path / "run"), load_state(tmp_path / "run" / "checkpoint.pt")
    masks = load_run(tmp_path / "run").masks
    averages = state["average"]["model"]
    for name, mask in masks.items():
        assert torch.equal(saved[name], averages[name])
        assert not torch.equal(saved[name], state["model"][name])
        assert not saved[name][~mask].any()
    finished = load_run(tmp_path / "run")
    with torch.no_grad():
        losses = [
            finished.task.loss(finished.model, batch.content) * batch.samples
            for batch in finished.task.splits.test.batches(100, seed=0)
        ]
    assert float(sum(losses)) / len(finished.task.splits.test) == pytest.approx(result.test_loss, rel=1e-4)


def test_a_killed_and_resumed_run_with_an_average_equals_an_undisturbed_one(tmp_path):
    run = change(SMALL, method="rigl", ema=0.9)
    whole = loop.train(run, tmp_path / "whole")
    with pytest.raises(Killed):
        loop.train(run, tmp_path / "killed", watcher=KillAfter(2))
    again = loop.train(run, tmp_path / "killed", resume=True)
    first, second = weights_of(tmp_path / "whole"), weights_of(tmp_path / "killed")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert whole.test_loss == again.test_loss


def test_a_decay_that_is_none_is_refused():
    with pytest.raises(InputError, match="--ema"):
        resolve(change(SMALL, ema=1.5))
