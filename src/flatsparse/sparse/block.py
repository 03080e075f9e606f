"""Block sparsity: weights that are active or pruned together, which ordinary vector units compute fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flatsparse.common.errors import InputError, check_count
from flatsparse.common.weight_layout import outputs_first
from flatsparse.sparse.distributions import Distribution
from flatsparse.sparse.masked_weight import MaskedWeight
from flatsparse.sparse.scores import Score
from flatsparse.sparse.threshold import count_true
from flatsparse.sparse.topk import apportion, keep_top


@dataclass(frozen=True)
class Block:
    """Block sparsity: ``outputs`` × ``inputs`` neighbouring weights of a layer are active or pruned as a whole.

    Block-sparse weights are of Gray et al. (2017), pruning by blocks of Narang et al. (2017), who score a block by its largest
    weight; here it is by the sum of its weights' scores. Layers may have any sparsity that whole blocks make, and have at
    least one block.
    Outputs and inputs are the features of a linear layer and, at one position of the kernel, the channels of a convolution,
    whichever way round a layer stores them; in a layer with groups, the inputs of one group. Without arguments 16×1, for which
    ``flatsparse.accelerate`` has kernels.

    Attributes:
        outputs, inputs: the number of consecutive ones that a block has.

    Raises: InputError for a size that is no whole number of at least 1.

    >>> block = Block(2, inputs=1)
    >>> block.best(block.ranked(torch.tensor([[0.1, 3.0, 2.0], [2.0, 0.0, 2.0]])), count=2).int()
    tensor([[0, 0, 1],
            [0, 0, 1]], dtype=torch.int32)
    """

    outputs: int = 16
    inputs: int = 1
    sparsity: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        check_count("the outputs of a block", self.outputs)
        check_count("the inputs of a block", self.inputs)

    def __str__(self) -> str:
        return f"block:{self.outputs}x{self.inputs}"

    @property
    def size(self) -> int:
        return self.outputs * self.inputs

    def ranked(self, scores: Tensor, layer: str = "weight", inputs_first: int = 0) -> Tensor:
        return self._spread(self._sums(scores, layer, inputs_first), inputs_first)

    def counts(
        self,
        scores: Mapping[str, Tensor],
        total: int,
        distribution: Distribution,
        most: Mapping[str, int] | None = None,
    ) -> dict[str, int]:
        most = {name: s.numel() for name, s in scores.items()} if most is None else most
        caps = [most[name] // self.size for name in scores]
        floors = [min(1, cap) for cap in caps]
        blocks = min(max(round(total / self.size), sum(floors)), sum(caps))
        shares = distribution(scores, blocks * self.size)
        counts = apportion(blocks, list(shares.values()), caps, floors)
        return {name: count * self.size for name, count in zip(scores, counts, strict=True)}

    def best(self, scores: Tensor, count: int, inputs_first: int = 0) -> Tensor:
        first = self._blocks(outputs_first(scores, inputs_first))[:, 0, :, 0]
        return self._spread(keep_top(first, count // self.size), inputs_first)

    def moved(self, w: MaskedWeight, fraction: float, drop: Score, grow: Score) -> Tensor:
        before = self._blocks(outputs_first(w.mask, w.inputs_first))[:, 0, :, 0]
        active = count_true(before)
        moved = int(fraction * active)
        if moved == 0:
            return w.mask
        kept = keep_top(self._sums(drop(w), w.name, w.inputs_first), active - moved, among=before)
        grown = keep_top(self._sums(grow(w), w.name, w.inputs_first), moved, among=~kept)
        return self._spread(kept | grown, w.inputs_first)

    def holds(self, mask: Tensor, layer: str = "weight", inputs_first: int = 0) -> bool:
        active = self._sums(mask.float(), layer, inputs_first)
        return bool(((active == 0) | (active == self.size)).all())

    def _sums(self, scores: Tensor, layer: str, inputs_first: int) -> Tensor:
        """The sum of each block's scores, (outputs / a block's, inputs / a block's, …).

        Raises: InputError when the layer does not divide into blocks.
        """
        scores = outputs_first(scores, inputs_first)
        for kind, size, own in (("outputs", self.outputs, scores.shape[0]), ("inputs", self.inputs, scores.shape[1])):
            if own % size:
                raise InputError(
                    f"layer '{layer}' has {own} {kind}, which pattern {self} does not divide: leave it out with exclude="
                )
        # Half precision would lose the smaller of the scores.
        return self._blocks(scores).sum((1, 3), dtype=torch.promote_types(scores.dtype, torch.float32))

    def _blocks(self, scores: Tensor) -> Tensor:
        return scores.unflatten(1, (-1, self.inputs)).unflatten(0, (-1, self.outputs))

    def _spread(self, blocks: Tensor, inputs_first: int) -> Tensor:
        """A tensor of the layer's own shape that has in each entry what its block has."""
        return outputs_first(blocks.repeat_interleave(self.outputs, 0).repeat_interleave(self.inputs, 1), inputs_first)
