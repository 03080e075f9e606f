"""Checks of passes: statistics that a batch is counted in twice, and weights that a forward meets outside the masks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from flatsparse.diagnosis.finding import users_line
from flatsparse.diagnosis.loop.events import Call, EventCheck
from flatsparse.diagnosis.objects.masks import weights_revived
from flatsparse.sam.optimizers import SAM


class RevivedAtForward(EventCheck):
    """Weights outside the masks that a forward meets."""

    def before_call(self, call: Call) -> None:
        for found in weights_revived(self.subject):
            self._report(replace(found, where=users_line()))


class StatisticsTwice(EventCheck):
    """A batch that goes through batch norms twice in a step, in training mode both times."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._seen: dict[
            tuple[Any, ...], tuple[Tensor, ...]
        ] = {}  # the inputs are kept, so that no address is used again

    def before_call(self, call: Call) -> None:
        if not call.module.training or call.recomputed or not call.inputs or self._is_second_pass():
            return
        norms = [m for m in call.module.modules() if isinstance(m, _NormBase) and m.training and m.track_running_stats]
        key = tuple((t.data_ptr(), t._version, tuple(t.shape), t.stride()) for t in call.inputs)
        if key in self._seen and norms:
            self.report(
                "statistics-twice",
                "the same batch goes through batch norms twice in one step, so their running statistics count it twice",
                "take the second pass inside SAM's perturbed(), which leaves statistics alone, or with batch norms in eval()",
            )
        self._seen[key] = call.inputs

    def _is_second_pass(self) -> bool:
        return isinstance(self.subject.sharpness, SAM) and self.subject.is_perturbed

    def after_step(self, optimizer: Optimizer) -> None:
        if self.is_own(optimizer):
            self._seen = {}


class BuffersTwice(EventCheck):
    """Buffers that SAM's second pass changes, such as the statistics of layers that torch knows nothing of."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._before: list[tuple[str, Tensor, Tensor]] = []

    def before_call(self, call: Call) -> None:
        if isinstance(self.subject.sharpness, SAM) and self.subject.is_perturbed and not self._before:
            model: nn.Module = call.module
            self._before = [(name, buffer, buffer.clone()) for name, buffer in model.named_buffers()]

    def after_step(self, optimizer: Optimizer) -> None:
        if not self.is_own(optimizer):
            return
        changed = [name for name, buffer, before in self._before if not torch.equal(buffer, before)]
        self._before = []
        if changed:
            self.report(
                "statistics-twice",
                f"SAM's second pass changes the buffer '{changed[0]}' once more for the same batch",
                "derive the layer from torch's batch norms, whose statistics SAM restores, or update it in the first pass only",
            )
