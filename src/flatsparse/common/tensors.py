"""Tensors and their memory: versions and restoring of contents, and tensors that share storage."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from flatsparse.common.distributed import PLAIN, are_plain, local_tensor

Version = tuple[int, int]


def version(p: Tensor) -> Version:
    """A value that differs after a tensor is written to in place or given other storage (but not after ``p.data.copy_``)."""
    return p._version, (p if type(p) in PLAIN else local_tensor(p)).data_ptr()


def versions(tensors: Sequence[Tensor]) -> list[Version]:
    """The ``version`` of each tensor."""
    if are_plain(tensors):  # four times as fast
        return [(p._version, p.data_ptr()) for p in tensors]
    return list(map(version, tensors))


def averageable(tensor: Tensor) -> Tensor:
    """A copy that any running average survives: what is not finite is 0, and differences of what is finite are.

    >>> averageable(torch.tensor([1.0, float("nan"), -float("inf")]))
    tensor([1., 0., 0.])
    """
    most = torch.finfo(tensor.dtype).max / 4
    return tensor.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).clamp_(-most, most)


@contextmanager
def restored(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """A context that restores the tensors' values at its end, bit for bit; it yields copies of these."""
    values = [t.detach().clone() for t in tensors]
    try:
        yield values
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)


def shared_storage(named: Iterable[tuple[str, Tensor]]) -> list[tuple[str, str]]:
    """The pairs of names whose tensors are distinct but overlap in memory, as after ``a.data = b.data``.

    Each of the two is updated, masked and perturbed by itself, so that neither's mask holds. Tensors without memory, such as
    those on ``meta``, overlap with none.

    >>> from torch import nn
    >>> a, b = nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(2, 3))
    >>> b.data = a.data.T
    >>> shared_storage({"a": a, "b": b}.items())
    [('a', 'b')]
    """
    by_storage: dict[int, list[tuple[str, Tensor]]] = {}
    for name, tensor in {id(t): (n, t) for n, t in reversed(list(named))}.values():
        address = _storage(tensor)
        if address is not None:
            by_storage.setdefault(address, []).insert(0, (name, local_tensor(tensor.detach())))
    return [
        (one, other)
        for sharing in by_storage.values()
        for (one, a), (other, b) in itertools.combinations(sharing, 2)
        if _overlap(a, b)
    ]


def span(tensor: Tensor) -> tuple[int, int]:
    """The range of bytes of its storage that a strided tensor covers: the first, and the one after the last."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = int(tensor.storage_offset()) * tensor.element_size()
    return start, start + int(extent) * tensor.element_size()


def _storage(tensor: Tensor) -> int | None:
    """The address of a tensor's memory; None for one without any."""
    try:
        local = local_tensor(tensor.detach())
        return None if local.is_meta or not local.numel() else local.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):  # kinds of tensors that have none of their own
        return None


def _overlap(a: Tensor, b: Tensor) -> bool:
    """True when two tensors on one storage have a byte in common."""
    (first, last), (start, end) = span(a), span(b)
    if last <= start or end <= first:
        return False
    if a.dtype != b.dtype or (a.is_contiguous() and b.is_contiguous()):
        return True
    touched = torch.zeros(max(last, end) // a.element_size(), dtype=torch.bool)  # such as columns of one matrix
    touched.as_strided(a.shape, a.stride(), a.storage_offset()).fill_(True)
    return bool(touched.as_strided(b.shape, b.stride(), b.storage_offset()).any())
