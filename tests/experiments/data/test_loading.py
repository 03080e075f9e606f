"""Splits of any data set: what is random follows the seed, the epoch and the sample, whoever reads them."""

import contextlib
import dataclasses
import os
import random
import signal
import time
from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch

from flatsparse.common.errors import InputError
from flatsparse.experiments.data.loading import MapSplit, StreamSplit, deaths_told, moved, seeded


class Noisy:
    """Samples with numbers drawn from all three generators, as a user's augmentation would draw them."""

    def __init__(self, count=10):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        drawn = [float(torch.rand(())), float(np.random.rand()), random.random()]
        return torch.tensor([index, *drawn], dtype=torch.float64)


class Stream(Noisy):
    """The same as a stream; ``there`` are fewer or more than its length says, if given."""

    def __init__(self, count=10, there=None):
        super().__init__(count)
        self.there, self.epochs = there or count, []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    __getitem__ = None

    def __iter__(self):
        return (Noisy.__getitem__(self, index) for index in range(self.there))


def contents(split, size=4, **how):
    return [batch.content for batch in split.batches(size, **how)]


def together(split, **how):
    return torch.cat(contents(split, **how))


# -- order and randomness ---------------------------------------------------------------------------------------------


def test_without_a_seed_the_order_is_the_datas():
    assert together(MapSplit(Noisy(), "it"))[:, 0].tolist() == list(range(10))
    assert together(StreamSplit(Stream(), "it"))[:, 0].tolist() == list(range(10))


@pytest.mark.parametrize("kind", [MapSplit, StreamSplit])
@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(kind, workers):
    source = Noisy() if kind is MapSplit else Stream()
    one = contents(kind(source, "it"), seed=3, epoch=1)
    more = contents(kind(source, "it", workers=workers), seed=3, epoch=1)
    assert len(one) == 3
    assert all(torch.equal(a, b) for a, b in zip(one, more, strict=True))


@pytest.mark.parametrize("kind", [MapSplit, StreamSplit])
def test_what_is_drawn_follows_seed_and_epoch_and_not_what_was_drawn_before(kind):
    split = kind(Noisy() if kind is MapSplit else Stream(), "it")
    first = together(split, seed=3, epoch=1)
    torch.rand(5)
    random.random()
    np.random.rand()
    assert torch.equal(together(split, seed=3, epoch=1), first)
    for other in ({"seed": 4, "epoch": 1}, {"seed": 3, "epoch": 2}):
        drawn = together(split, **other)
        assert all(set(drawn[:, column].tolist()).isdisjoint(first[:, column].tolist()) for column in (1, 2, 3))


def noisy_collate(samples):
    """A batch with numbers from all three generators, as a collate function that masks or mixes samples draws them."""
    return [torch.rand(()).item(), random.random(), float(np.random.rand()), len(samples)]


@pytest.mark.parametrize("kind", [(MapSplit, Noisy), (StreamSplit, Stream)])
def test_what_collate_draws_follows_seed_and_epoch_with_any_number_of_workers(kind):
    split, dataset = kind
    ours = [contents(split(dataset(), "it", collate=noisy_collate, workers=w), seed=1, epoch=2) for w in (0, 1, 2)]
    assert ours[0] == ours[1] == ours[2]
    assert len({batch[0] for batch in ours[0]}) == 3  # another number for each batch
    other = split(dataset(), "it", collate=noisy_collate, workers=1)
    for how in ({"seed": 1, "epoch": 3}, {"seed": 2, "epoch": 2}):
        assert contents(other, **how)[0] != ours[0][0]


def test_a_samples_own_numbers_follow_its_index_whatever_the_size_of_a_batch():
    split = MapSplit(Noisy(), "it")
    drawn = [{row[0]: row[1:] for row in together(split, size=size, seed=3, epoch=1).tolist()} for size in (1, 4, 10)]
    assert drawn[0] == drawn[1] == drawn[2]
    assert len(set(drawn[0])) == 10


@pytest.mark.parametrize("kind", [MapSplit, StreamSplit])
@pytest.mark.parametrize("workers", [0, 2])
def test_reading_leaves_the_generators_of_training_alone(kind, workers):
    """Or else a model with dropout would draw other numbers for another number of workers."""
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    wanted = float(torch.rand(())), random.random(), float(np.random.rand())
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    batches = kind(Noisy() if kind is MapSplit else Stream(), "it", workers=workers).batches(4, seed=0)
    next(batches)
    assert (float(torch.rand(())), random.random(), float(np.random.rand())) == wanted


def test_a_stream_keeps_its_own_randomness_while_training_draws_between_two_batches():
    alone = contents(StreamSplit(Stream(), "it"), seed=0)
    torch.manual_seed(5)
    between = []
    for batch in StreamSplit(Stream(), "it").batches(4, seed=0):
        between.append(batch.content)
        torch.rand(3)
    assert all(torch.equal(a, b) for a, b in zip(alone, between, strict=True))


@pytest.mark.parametrize("kind", [MapSplit, StreamSplit])
def test_the_shards_of_two_processes_are_one_epoch(kind):
    split = kind(Noisy() if kind is MapSplit else Stream(), "it")
    whole = list(split.batches(4, seed=7, epoch=2))
    parts = [list(split.batches(4, seed=7, epoch=2, shard=slice(rank, None, 2))) for rank in (0, 1)]
    for batch, one, other in zip(whole, *parts, strict=True):
        assert one.whole == other.whole == batch.whole == batch.samples == len(batch.content)
        assert one.samples + other.samples == batch.samples
        assert torch.equal(one.content, batch.content[0::2])
        assert torch.equal(other.content, batch.content[1::2])


def test_a_stream_is_told_the_epoch():
    stream = Stream()
    together(StreamSplit(stream, "it"), seed=0, epoch=3)
    assert stream.epochs == [3]


def test_parts_of_a_split():
    split = MapSplit(Noisy(), "it").subset(torch.tensor([7, 2, 5]))
    assert (len(split), split.steps(2)) == (3, 2)
    assert together(split)[:, 0].tolist() == [7, 2, 5]
    assert together(split.first(2))[:, 0].tolist() == [7, 2]
    assert together(split.subset(torch.tensor([2, 0])))[:, 0].tolist() == [5, 7]
    stream = StreamSplit(Stream(), "it").first(3)
    assert (len(stream), stream.steps(2)) == (3, 2)
    assert together(stream)[:, 0].tolist() == [0, 1, 2]
    assert len(split.first(99)) == 3
    assert len(stream.first(99)) == 3


def test_the_end_of_a_run_is_measured_on_the_first_of_many_samples():
    assert len(MapSplit(Noisy(20_000), "it").measured()) == len(StreamSplit(Stream(20_000), "it").measured()) == 10_000
    assert len(MapSplit(Noisy(10), "it").measured()) == 10


# -- collate and devices ----------------------------------------------------------------------------------------------


def test_collate_gets_the_samples_of_a_batch():
    split = MapSplit(Noisy(5), "it", collate=len)
    assert contents(split) == [4, 1]
    assert contents(StreamSplit(Stream(5), "it", collate=len)) == [4, 1]


def test_whatever_a_batch_is_made_of_moves():
    Pair = namedtuple("Pair", ["one", "other"])  # an ordinary one, as users write it
    meta = torch.device("meta")
    batch = {"a": [torch.ones(2), "text"], "b": Pair(torch.ones(1), None), "c": (torch.ones(1), 3)}
    there = moved(batch, meta)
    assert [there["a"][0].device.type, there["b"].one.device.type, there["c"][0].device.type] == ["meta"] * 3
    assert there["a"][1] == "text"
    assert isinstance(there["b"], Pair)
    assert (there["b"].other, there["c"][1]) == (None, 3)

    class Encoding:
        def __init__(self, device="cpu"):
            self.device = device

        def to(self, device):
            return Encoding(device)

    assert moved(Encoding(), meta).device == meta
    assert moved(torch.nn.Linear, meta) is torch.nn.Linear  # a class has ``to`` as well


@dataclasses.dataclass(frozen=True)
class Labelled:
    inputs: torch.Tensor
    name: str


def test_batches_of_dataclasses_mappings_and_packed_sequences_move():
    meta = torch.device("meta")
    batch = Labelled(torch.ones(2), "text")
    there = moved(batch, meta)
    assert (there.inputs.device.type, there.name, batch.inputs.device.type) == ("meta", "text", "cpu")
    ordered = OrderedDict(a=torch.ones(2), b=3)
    there = moved(ordered, meta)
    assert (type(there), there["a"].device.type, there["b"]) == (OrderedDict, "meta", 3)
    assert ordered["a"].device.type == "cpu"
    packed = torch.nn.utils.rnn.pack_sequence([torch.ones(3), torch.ones(2)])
    there = moved(packed, meta)
    assert (there.data.device.type, there.batch_sizes.device.type) == ("meta", "cpu")  # as recurrent layers want it


def test_seeded_puts_the_generators_back_even_after_an_error():
    torch.manual_seed(1)
    wanted = float(torch.rand(()))
    torch.manual_seed(1)
    with contextlib.suppress(ZeroDivisionError), seeded("here"):
        _ = torch.rand(3), 1 / 0
    assert float(torch.rand(())) == wanted
    with seeded("here", 1):
        one = float(torch.rand(())), random.random(), float(np.random.rand())
    with seeded("here", 1):
        assert (float(torch.rand(())), random.random(), float(np.random.rand())) == one


# -- bad input --------------------------------------------------------------------------------------------------------


class Broken(Noisy):
    def __getitem__(self, index):
        if index == 6:
            raise ValueError("row 6 is torn\nand more")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_raises_is_named_in_a_line(workers):
    with pytest.raises(InputError) as caught:
        contents(MapSplit(Broken(), "mine", workers=workers))
    assert "'mine' cannot be read: ValueError: row 6 is torn" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_collate_that_raises_is_told_in_a_line(workers):
    with pytest.raises(InputError, match="'mine' cannot be read: ZeroDivisionError"):
        contents(MapSplit(Noisy(), "mine", collate=lambda samples: 1 // 0, workers=workers))


class Deadly(Noisy):
    def __getitem__(self, index):
        if index == 6:
            os.kill(os.getpid(), 9)  # as the kernel does, out of memory
        return super().__getitem__(index)


def test_a_worker_that_is_killed_is_told_in_a_line():
    with pytest.raises(InputError, match=r"a worker process that reads .mine. died, .* fewer --workers"):
        contents(MapSplit(Deadly(), "mine", workers=1))


def test_a_worker_that_is_killed_during_a_step_is_told_in_a_line():
    batches = MapSplit(Workers(1000), "it", workers=1).batches(4)
    worker = int(next(batches).content[0])
    with pytest.raises(InputError, match="a worker process that reads 'it' died"):
        step_that_kills(worker)


@deaths_told("it")
def step_that_kills(worker):
    os.kill(worker, signal.SIGKILL)
    time.sleep(10)  # until the signal of its end arrives


class Workers(Noisy):
    def __getitem__(self, index):
        return os.getpid()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_that_ends_early_is_told(workers):
    with pytest.raises(InputError, match="'mine' ended after 6 of the 10 samples that its length says"):
        contents(StreamSplit(Stream(10, there=6), "mine", workers=workers))


def test_of_a_stream_that_goes_on_no_more_is_read_than_its_length_says():
    assert len(together(StreamSplit(Stream(10, there=99), "mine"))) == 10


def test_a_stream_that_raises_is_told():
    class Torn(Stream):
        def __iter__(self):
            yield from (torch.ones(1) for _ in range(5))
            raise OSError("the pipe is torn")

    with pytest.raises(InputError, match="'mine' cannot be read: OSError: the pipe is torn"):
        contents(StreamSplit(Torn(), "mine"))
