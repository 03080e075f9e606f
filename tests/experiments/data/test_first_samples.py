"""The first samples of batches of several forms."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, namedtuple

import pytest
import torch

from flatsparse.common.errors import InputError
from flatsparse.experiments.data.first_samples import first_samples
from flatsparse.experiments.data.split import Batch
from flatsparse.experiments.data.token_batches import Sequences

ROWS = torch.arange(12).view(4, 3)
Pair = namedtuple("Pair", ["inputs", "scale"])


@dataclasses.dataclass(frozen=True)
class Some:
    inputs: torch.Tensor
    name: str


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (ROWS, lambda c: [c]),
        ((ROWS, ROWS[:, 0]), list),
        ([ROWS, {"x": ROWS, "n": 3}], lambda c: [c[0], c[1]["x"]]),
        (OrderedDict(x=ROWS), lambda c: [c["x"]]),
        (Pair(ROWS, 0.5), lambda c: [c.inputs]),
        (Some(ROWS, "a"), lambda c: [c.inputs]),
        (Sequences(None, ROWS, 3.0, 3.0, ("a", "b", "c", "d")), lambda c: [c.target]),
    ],
)
def test_tensors_with_a_row_for_each_sample_are_cut(content, rows):
    part = first_samples(Batch(content, 4, 8), 3)
    assert (part.samples, part.whole) == (3, 6)
    assert type(part.content) is type(content)
    assert [len(tensor) for tensor in rows(part.content)] == [3] * len(rows(content))
    assert all(torch.equal(a, b[:3]) for a, b in zip(rows(part.content), rows(content), strict=True))
    assert [len(tensor) for tensor in rows(content)] == [4] * len(rows(content))


def test_lists_of_one_entry_a_sample_are_cut_and_pairs_are_not():
    images = [torch.zeros(3, 5, 5), torch.zeros(3, 6, 6)]
    assert first_samples(Batch({"images": images, "boxes": [[], [1]]}, 2, 2), 1).content == {
        "images": images[:1],
        "boxes": [[]],
    }
    inputs, targets = first_samples(Batch([torch.zeros(2, 5), torch.zeros(2)], 2, 2), 1).content
    assert (inputs.shape, targets.shape) == ((1, 5), (1,))


def test_what_has_no_rows_is_refused():
    with pytest.raises(InputError, match=r"\Aa batch of 4 samples, Tensor, has no tensor with a row for each.*\Z"):
        first_samples(Batch(torch.zeros(3), 4, 4), 2)
    assert first_samples(Batch("anything", 4, 4), 4).content == "anything"
