"""The bytes of live tensors, exactly: no allocator's rounding, no process size."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flatsparse.common.seeds import generator
from flatsparse.experiments.bench.cases import Case
from flatsparse.experiments.bench.trainer import Trainer
from flatsparse.experiments.bench.variants import Variant

STEPS = (
    3  # the first makes the optimizer's state, the second the first perturbed weights; the third is like all after it
)


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations inside it read or make, each once, until it is freed.

    What a kernel allocates and frees within one operation is not seen.

    Attributes:
        now: bytes alive.
        peak: the most that were alive at once since it was last set.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._seen:
            self._seen.add(key)
            self.now += storage.nbytes()
            weakref.finalize(storage, self._freed, key, storage.nbytes())

    def _freed(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


@dataclass(frozen=True)
class Memory:
    """Bytes of live tensors.

    Attributes:
        parameters: of the model.
        kept: between steps, gradients cleared: model, optimizer state, masks.
        peak: at the fullest moment of a step, with its batch and activations.
    """

    parameters: int
    kept: int
    peak: int


def memory(case: Case, variant: Variant, *, sparsity: float = 0.0, device: str = "cpu") -> Memory:
    """Train a few steps and count what is alive after and during the last."""
    gc.collect()
    with LiveBytes() as live:
        trainer = Trainer(case, variant, sparsity=sparsity, device=device)
        source = generator(0, "batches")
        for _ in range(STEPS):
            inputs, targets = case.batch(source)
            live.peak = live.now
            trainer.step((inputs.to(device), targets.to(device)))
            del inputs, targets
            trainer.optimizer.zero_grad()
    return Memory(sum(p.nbytes for p in trainer.model.parameters()), live.now, live.peak)
