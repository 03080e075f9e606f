"""What an accelerated linear layer knows: its mask's index, and whether it is faster sparse."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from flatsparse.acceleration.gradient_memory import GradientMemory
from flatsparse.acceleration.index import Index, index_of
from flatsparse.acceleration.linear import linear
from flatsparse.acceleration.measure import DENSEST, Kind, speedup
from flatsparse.common.distributed import PLAIN
from flatsparse.common.tensors import Version, version
from flatsparse.sparse.masks import MaskedWeight


class SparseLayer:
    """What an accelerated layer knows: its mask's index, whether it is faster sparse, and what it did last.

    Args:
        masked: the layer's weight and mask.
        wants_dense: returns whether the coming optimizer step needs the gradient of masked weights too.
        is_active: returns whether the masks are still kept; otherwise the layer is dense.
        say: called with the reason when the kernels cannot compute a call.

    Attributes:
        does: "sparse", or "dense: " and why.
    """

    def __init__(
        self,
        masked: MaskedWeight,
        wants_dense: Callable[[], bool],
        is_active: Callable[[], bool],
        say: Callable[[str], None],
    ) -> None:
        self.does = "dense: it was not called yet"
        self._masked = masked
        self._wants_dense, self._is_active, self._say = wants_dense, is_active, say
        self._memory = GradientMemory()
        self._index: Index | None = None
        self._indexed: Version | None = None  # the version of the mask that the index is of
        self._faster: dict[
            tuple[int, bool, bool, int], bool
        ] = {}  # sparse than dense, by what ``Kind`` asks for besides

    def index(self) -> Index:
        """Return the index of the mask as it is now."""
        mask = self._masked.mask
        if self._index is None or self._indexed != version(mask):
            self._index, self._indexed = index_of(mask), version(mask)
            self._faster.clear()
        return self._index

    def linear(self, x: Tensor, weight: nn.Parameter, bias: Tensor | None) -> Tensor | None:
        """Return the layer's output, or None where it should be computed densely."""
        wants_values = torch.is_grad_enabled() and weight.requires_grad
        masked = self._masked
        if masked.active > DENSEST * masked.size:
            self.does = f"dense: {1 - masked.active / masked.size:.0%} of its weights are zero, too few to pay"
            return None
        if reason := self._unfit(x, weight, bias):
            self.does = f"dense: {reason}"
            self._say(reason)
            return None
        if not x.numel() or x.shape[-1] != masked.mask.shape[1]:  # torch has its own answers
            return None
        index, wants_x = self.index(), torch.is_grad_enabled() and x.requires_grad
        if not masked.is_packed and not self._is_faster(index, x.numel() // index.columns, wants_x, wants_values):
            return None
        self.does = "sparse"
        if masked.is_packed:  # so is its gradient
            self._memory.release()
        return linear(x, weight, bias, index, self._wants_dense, self._memory)

    def _is_faster(self, index: Index, samples: int, wants_x: bool, wants_values: bool) -> bool:
        key = samples, wants_x, wants_values, torch.get_num_threads()
        if key not in self._faster:
            self._faster[key] = speedup(Kind.of(index, samples, wants_x=wants_x, wants_values=wants_values)) > 0
        if not self._faster[key]:
            share = index.entries / (index.rows * index.columns)
            self.does = (
                f"dense: sparse was not faster, as measured with {samples} samples and {share:.1%} active weights"
            )
        return self._faster[key]

    def _unfit(self, x: Tensor, weight: nn.Parameter, bias: Tensor | None) -> str | None:
        """Why the kernels cannot compute this call; None when they can."""
        if weight is not self._masked.weight:
            return "its weight was replaced"
        if not self._is_active():
            return "its masks are kept no longer"
        if torch.is_autocast_enabled("cpu"):
            return "autocast is on, and the kernels are for float32"
        for t in (x, weight) if bias is None else (x, weight, bias):
            if type(t) not in PLAIN or t.is_nested or t.layout is not torch.strided:
                return "it was called with tensors of another kind"
            if not t.is_cpu or t.dtype is not torch.float32:
                return "the kernels are for float32 on the CPU"
        if not weight.is_contiguous() or not self._masked.mask.is_cpu or self._masked.size >= 2**31:
            return "its weight is not laid out row by row"
        if bias is not None and not bias.is_contiguous():
            return "its bias is not laid out entry by entry"
        return None
