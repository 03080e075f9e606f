import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flatsparse.experiments.data.token_batches import TokenLists, TokenSplit

LENGTHS = st.lists(st.tuples(st.integers(1, 9), st.integers(2, 9)), min_size=1, max_size=30)


def split_of(lengths):
    """Pairs of which each token says the number of its pair, from 1 on."""
    source = TokenLists.of([[n + 1] * count for n, (count, _) in enumerate(lengths)])
    target = TokenLists.of([[n + 1] * count for n, (_, count) in enumerate(lengths)])
    return TokenSplit(target, source, torch.arange(len(lengths)), tuple(str(n + 1) for n in range(len(lengths))))


def numbers(batch):
    return batch.content.target[:, 0].tolist()


def epoch(split, size, **options):
    return [numbers(batch) for batch in split.batches(size, **options)]


@given(LENGTHS, st.integers(1, 60), st.integers(0, 3))
def test_every_pair_comes_once_whole_and_in_a_batch_of_bounded_size(lengths, size, number):
    split = split_of(lengths)
    batches = list(split.batches(size, seed=5, epoch=number))
    assert sorted(itertools.chain(*map(numbers, batches))) == list(range(1, len(lengths) + 1))
    assert len(batches) == split.steps(size)
    assert min(batch.samples for batch in batches) == split.smallest(size)
    for batch in batches:
        content = batch.content
        longest = max(content.source.shape[1], content.target.shape[1])
        assert batch.samples == batch.whole == len(content.source) == len(content.target)
        assert batch.samples * longest <= size or batch.samples == 1
        for row, pair in enumerate(numbers(batch)):
            for side, count in zip((content.source, content.target), lengths[pair - 1], strict=True):
                assert side[row].tolist() == [pair] * count + [0] * (side.shape[1] - count)
            assert content.texts[row] == str(pair)
        assert content.per_sample * batch.samples == pytest.approx(int((content.target[:, 1:] != 0).sum()))
        assert content.in_split * len(split) == pytest.approx(sum(count - 1 for _, count in lengths))


@given(LENGTHS, st.integers(20, 60), st.integers(2, 3))
def test_shards_part_each_batch(lengths, size, processes):
    split = split_of(lengths)
    whole = list(split.batches(size, seed=1, epoch=2))
    shards = [
        list(split.batches(size, seed=1, epoch=2, shard=slice(rank, None, processes))) for rank in range(processes)
    ]
    for batch, *parts in zip(whole, *shards, strict=True):
        assert sorted(itertools.chain(*map(numbers, parts))) == sorted(numbers(batch))
        assert sum(part.samples for part in parts) == batch.samples
        assert {part.whole for part in parts} == {batch.samples}
        assert {part.content.per_sample for part in parts} == {batch.content.per_sample}


def test_the_order_follows_seed_and_epoch():
    split = split_of([(3, 4)] * 40)
    again = epoch(split, 16, seed=1, epoch=2)
    assert epoch(split, 16, seed=1, epoch=2) == again
    assert epoch(split, 16, seed=1, epoch=3) != again != epoch(split, 16, seed=2, epoch=2)
    assert epoch(split, 16) == [list(range(start, start + 4)) for start in range(1, 41, 4)]  # the data's own
    mixed = epoch(split_of([(1, 2)] * 4 + [(7, 8)] * 4), 8, seed=3)
    assert sorted(map(len, mixed)) == [1, 1, 1, 1, 4]
    assert [len(batch) for batch in mixed] != sorted(map(len, mixed), reverse=True)  # batches are mixed too


def test_parts_of_a_split():
    split = split_of([(2, 3), (9, 9), (4, 5)])
    assert epoch(split.first(2), 1) == [[1], [2]]
    assert epoch(split.subset(torch.tensor([2, 1])).first(1), 1) == [[3]]
    assert epoch(split.first(9), 1000) == [[1, 3, 2]]  # by length
    assert split.tokens == 14
    assert len(split.measured()) == 3
