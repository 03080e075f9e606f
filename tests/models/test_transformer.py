"""The encoder-decoder Transformer: its size, masks, positions, and decoding token by token."""

import math

import pytest
import torch
import torch.nn.functional as F

import flatsparse as fs
from flatsparse.measure.flops import cost
from flatsparse.models.transformer import PADDING, DecoderCache, LayerSize, Transformer, sinusoids
from tests.helpers import Joined


def small(**options):
    torch.manual_seed(0)
    return fs.models.transformer_tiny(30, **options).eval()


def tokens(*shape):
    return torch.randint(1, 30, shape)


both_norms = pytest.mark.parametrize("norm_first", [False, True])


@both_norms
def test_base_has_as_many_parameters_as_the_paper_tells(norm_first):
    width, hidden, vocabulary = 512, 2048, 37_000
    attention, net, norm = 4 * width**2, 2 * width * hidden + width + hidden, 2 * width
    layers = 6 * (attention + net + 2 * norm) + 6 * (2 * attention + net + 3 * norm)
    with torch.device("meta"):
        model = fs.models.transformer_base(norm_first=norm_first)
    count = sum(p.numel() for p in model.parameters())
    assert count == vocabulary * width + layers + 2 * norm * norm_first
    assert count == pytest.approx(65e6, rel=0.04)  # Vaswani et al. 2017, Table 3, rounded


def test_every_product_is_counted():
    source, target, width, hidden = 7, 5, 128, 512
    counted = cost(Joined(small(), source), tokens(2, source + target))
    encoder = source * 2 * (4 * width**2 + 2 * width * hidden)
    decoder = 2 * (target * (6 * width**2 + 2 * width * hidden) + source * 2 * width**2)
    assert sum(counted.layers.values()) == 2 * (encoder + decoder + target * 30 * width)
    assert min(counted.layers.values()) > 0
    assert counted.other == 2 * 2 * 2 * width * (source**2 + target**2 + source * target)


def test_positions_are_the_papers_sinusoids():
    table = sinusoids(torch.arange(50), 8)
    for position, column in [(0, 0), (0, 1), (7, 0), (7, 1), (49, 4), (49, 7)]:
        angle = position / 10_000 ** ((column - column % 2) / 8)
        wanted = math.cos(angle) if column % 2 else math.sin(angle)
        assert float(table[position, column]) == pytest.approx(wanted, abs=1e-5)


@both_norms
@torch.no_grad()
def test_padding_of_source_and_target_changes_nothing(norm_first):
    model, source, target = small(norm_first=norm_first), tokens(3, 6), tokens(3, 5)
    source[1, 4:] = PADDING  # of a sentence of four tokens
    wanted = model(source, target)
    longer = torch.cat([source, torch.full((3, 4), PADDING)], 1), torch.cat([target, torch.full((3, 2), PADDING)], 1)
    assert torch.allclose(model(*longer)[:, :5], wanted, atol=1e-5)
    assert torch.allclose(model(source[1:2, :4], target[1:2]), wanted[1:2], atol=1e-5)
    model.tokens.weight[PADDING] = 100.0  # whatever a padding token is embedded as
    assert torch.equal(model(source, target)[..., 1:], wanted[..., 1:])


@torch.no_grad()
def test_every_source_token_is_seen_and_in_its_place():
    model, source, target = small(), tokens(2, 6), tokens(2, 5)
    wanted = model(source, target)
    for position in range(6):
        changed = source.clone()
        changed[:, position] = changed[:, position] % 29 + 1
        assert (model(changed, target) - wanted).abs().amax(dim=(0, 2)).min() > 1e-5
    assert (model(source.flip(1), target) - wanted).abs().max() > 1e-3


@both_norms
@torch.no_grad()
def test_no_target_token_sees_a_later_one(norm_first):
    model, source, target = small(norm_first=norm_first), tokens(3, 6), tokens(3, 8)
    changed = target.clone()
    changed[:, 4] = changed[:, 4] % 29 + 1
    before, after = model(source, target), model(source, changed)
    assert before.shape == (3, 8, 30)
    assert torch.equal(before[:, :4], after[:, :4])
    assert (before[:, 4:] - after[:, 4:]).abs().amax(dim=(0, 2)).min() > 1e-4


def test_one_embedding_is_read_by_source_target_and_output():
    for reading, token in (("source", 3), ("target", 4), ("output", 5), (None, 6)):
        model = small()
        model(torch.full((1, 4), 3), torch.full((1, 4), 4))[..., 5].sum().backward()
        assert (model.tokens.weight.grad[token].abs().max() > 0) == (reading is not None)
    assert sum(p.shape[0] == 30 for p in model.parameters()) == 1


@both_norms
@torch.no_grad()
def test_decoding_with_a_cache_gives_what_decoding_at_once_does(norm_first):
    model, source, target = small(norm_first=norm_first), tokens(3, 6), tokens(3, 8)
    source[0, 3:] = PADDING
    memory = model.encode(source)
    wanted, cache, parts = model.decode(target, memory), DecoderCache(model), []
    for start, end in [(0, 1), (1, 2), (2, 5), (5, 6), (6, 8)]:  # one or several tokens a call
        parts.append(model.decode(target[:, start:end], memory, cache))
        assert len(cache) == end
    assert torch.allclose(torch.cat(parts, 1), wanted, atol=1e-5)
    assert torch.equal(wanted, model(source, target))


@torch.no_grad()
def test_rows_of_a_cache_are_selected_as_a_beam_search_does():
    model, source, target = small(), tokens(3, 6), tokens(3, 5)
    source[2, 2:] = PADDING
    memory, cache, rows = model.encode(source), DecoderCache(model), torch.tensor([2, 0, 2])
    model.decode(target[:, :4], memory, cache)
    cache.select(rows)
    found = model.decode(target[rows, 4:], memory.select(rows), cache)
    assert torch.allclose(found, model(source, target)[rows, 4:], atol=1e-5)


def test_dropout_is_on_in_training_alone():
    model, source, target = small(), tokens(2, 6), tokens(2, 5)
    assert torch.equal(model(source, target), model(source, target))
    model.train()
    assert not torch.equal(model(source, target), model(source, target))
    model = small(dropout=0.0).train()
    assert torch.equal(model(source, target), model(source, target))


def test_it_learns_to_reverse():
    torch.manual_seed(0)
    model = Transformer(10, 1, LayerSize(32, 4, 64, dropout=0.0))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(150):
        source = torch.randint(2, 10, (32, 4))
        target = torch.cat([torch.ones(32, 1, dtype=torch.int64), source.flip(1)], 1)
        logits = model(source, target[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.4  # log 8 = 2.1 without reading the source
