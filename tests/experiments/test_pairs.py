"""Synthetic sentence pairs: the data, the net, and a run on them."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from flatsparse.common.errors import InputError
from flatsparse.experiments.data.batches import batches
from flatsparse.experiments.data.pairs import LENGTH, WORDS
from flatsparse.experiments.data.samples import IGNORED
from flatsparse.experiments.data.sources import load
from flatsparse.experiments.data.splits import split
from flatsparse.experiments.landscape.measure import mean_loss
from flatsparse.experiments.run import task
from flatsparse.experiments.run.build import build, describe
from flatsparse.experiments.run.config import RunConfig, change
from flatsparse.experiments.run.load import load_run
from flatsparse.experiments.run.loop import train
from flatsparse.experiments.run.metrics import confusion
from flatsparse.experiments.run.resolve import resolve
from flatsparse.measure.flops import cost
from flatsparse.models import pair_transformer

SMALL = RunConfig.of(
    data="pairs", train_size=200, validation_size=100, batch_size=20, epochs=3, distribution="uniform", lr=0.05
)


def test_a_target_is_its_source_reversed_in_other_words():
    data = load("pairs")
    texts = torch.cat([data.pool.images, data.pool.labels[:, -1:]], dim=1)
    sources, separators, targets = texts.split([LENGTH, 1, LENGTH], dim=1)
    assert (separators == WORDS).all()
    means = {}
    for source, target in zip(sources[:300].tolist(), targets[:300].tolist(), strict=True):
        for word, other in zip(reversed(source), target, strict=True):
            assert means.setdefault(word, other) == other
    assert sorted(means) == sorted(means.values()) == list(range(WORDS))


def test_labels_are_the_next_tokens_of_the_target_alone():
    data = load("pairs")
    assert (data.pool.labels[:, :LENGTH] == IGNORED).all()
    assert torch.equal(data.pool.labels[:, LENGTH:-1], data.pool.images[:, LENGTH + 1 :])
    assert data.pool.targets == LENGTH * len(data.pool)


def test_no_sentence_occurs_twice():
    data = load("pairs")
    sentences = torch.cat([data.pool.images, data.test.images])[:, :LENGTH]
    assert len(sentences.unique(dim=0)) == len(sentences) == 12_000


def test_the_net_sees_no_later_token_and_attends_as_torch_does():
    torch.manual_seed(0)
    net, tokens = pair_transformer().double(), torch.randint(17, (3, 12))
    changed = tokens.clone()
    changed[:, 7:] = (tokens[:, 7:] + 1) % 17
    ours, other = net(tokens), net(changed)
    assert ours.shape == (3, 12, 17)
    assert torch.equal(ours[:, :7], other[:, :7])
    assert not torch.allclose(ours[:, 7:], other[:, 7:])
    block, x = net.blocks[0], torch.randn(3, 12, 64, dtype=torch.float64)
    q, k, v = (f(x).view(3, 12, 4, 16).transpose(1, 2) for f in (block.query, block.key, block.value))
    heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(block.attend(x), block.out(heads.transpose(1, 2).reshape(3, 12, 64)))


def test_every_matrix_is_counted():
    width, length = 64, 12
    found = cost(pair_transformer(), torch.zeros(1, length, dtype=torch.int64))
    layers = 2 * (4 * width**2 + 2 * 4 * width**2) + 17 * width
    assert sum(found.layers.values()) == 2 * length * layers
    assert found.other == 2 * 2 * (2 * length**2 * width)  # scores, and values weighted by them


def test_loss_and_accuracy_are_the_plain_ones_over_what_is_asked_for():
    source = torch.Generator().manual_seed(0)
    outputs, targets = torch.randn(4, 3, 5, generator=source), torch.randint(5, (4, 3), generator=source)
    targets[:, 0] = IGNORED
    rows = [(outputs[i, j], int(targets[i, j])) for i in range(4) for j in range(3) if targets[i, j] != IGNORED]
    plain = [-math.log(row.softmax(0)[target]) for row, target in rows]
    assert float(task.loss(outputs, targets)) == pytest.approx(sum(plain) / 8, rel=1e-5)
    assert float(task.loss(outputs, targets, reduction="sum")) == pytest.approx(sum(plain), rel=1e-5)
    assert int(task.correct(outputs, targets)) == sum(int(row.argmax()) == target for row, target in rows)
    assert int(confusion(outputs, targets, 5).sum()) == 8


@pytest.mark.parametrize("sharpness", ["none", "s2sam", "sam"])
def test_a_sparse_run_on_pairs_learns(tmp_path, sharpness):
    run = change(SMALL, sharpness=sharpness, epochs=12, sparsity=0.5)
    result = train(run, tmp_path / "run")
    assert result.train_accuracy > 2 * 100 / WORDS  # twice what guessing gives
    assert result.sparsity.prunable == pytest.approx(0.5, abs=1e-4)
    finished = load_run(tmp_path / "run")
    outputs = torch.cat([finished.model(x) for x, _ in batches(finished.splits.test, finished.splits, 500)])
    labels = finished.splits.test.labels
    right = [bool(outputs[i, j].argmax() == labels[i, j]) for i in range(1000) for j in range(LENGTH, 2 * LENGTH)]
    assert result.test_accuracy == pytest.approx(100 * sum(right) / len(right))
    weights = {name: p.detach() for name, p in finished.model.named_parameters()}
    assert float(mean_loss(finished, 10**6)(weights)) == pytest.approx(result.train_loss, rel=1e-4)


@pytest.mark.parametrize("method", ["snip", "lth", "dsr"])
def test_other_methods_run_on_pairs(tmp_path, method):
    distribution = None if method != "dsr" else SMALL.pruning.distribution
    run = change(SMALL, method=method, distribution=distribution, sparsity=0.5, train_size=60, epochs=1)
    assert train(run, tmp_path / "run").sparsity.prunable == pytest.approx(0.5, abs=1e-3)


def test_the_net_can_be_differentiated_twice():
    parts = build(resolve(SMALL))
    assert "200 training, 100 validation and 1000 test sequences" in describe(parts)
    inputs, targets = next(batches(parts.splits.train, parts.splits, 20))
    weight = parts.model.blocks[0].query.weight
    (slope,) = torch.autograd.grad(task.loss(parts.model(inputs), targets), weight, create_graph=True)
    (product,) = torch.autograd.grad(slope.sum(), weight)
    assert product.abs().max() > 0


def test_what_does_not_fit_is_refused_in_one_line():
    for changes, line in [
        ({"model": "resnet20"}, "--model resnet20 cannot read the tokens of 'pairs': give pair_transformer"),
        ({"data": "digits", "model": "pair_transformer"}, "cannot read the images of 'digits'"),
        ({"label_noise": 0.2}, "--label-noise is for images"),
    ]:
        with pytest.raises(InputError, match=line):
            build(resolve(change(SMALL, **changes)))


def test_pairs_need_no_folder_and_are_the_same_for_all():
    data = load("pairs", Path("/nowhere"))
    first, second = (split(data, train_size=20, validation_size=None, label_noise=0.0, seed=s) for s in (0, 1))
    assert torch.equal(first.validation.images, second.validation.images)
    assert not torch.equal(first.train.images, second.train.images)
