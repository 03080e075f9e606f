"""A stretch of a network, computed sparse where that can be and pays."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from flatsparse.acceleration.conv_layout import LANES
from flatsparse.acceleration.network_function import Runner
from flatsparse.acceleration.network_program import Geometry, Program
from flatsparse.common.distributed import PLAIN

# The share of products with live weights above which dense is as fast, or nearly: between 0.3 and 0.5 for residual networks.
DENSEST = 0.3


class Notes(Protocol):
    """What knows the live weights, and takes down what is done with them."""

    def count(self, weight: Tensor) -> tuple[int, int]:
        """Return the number of live entries of a weight, and that of all."""
        ...

    def note(self, program: Program, what: str) -> None:
        """Take down what the weights of a program do."""
        ...


class StretchRunner:
    """Computes a stretch sparse where it can and pays, else by its own modules."""

    def __init__(self, network: Notes, runner: Runner) -> None:
        self.network, self.program, self.runner = network, runner.program, runner
        self.__name__ = "accelerated_stretch"  # in the traced graph

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        if reason := self._unfit(images):
            self.network.note(self.program, f"dense: {reason}")
            return _dense(self.program, images)
        self.network.note(self.program, "sparse")
        return self.runner(images)

    def _unfit(self, images: Tensor) -> str | None:
        if images.ndim != 4 or not images.numel():
            return "it was called without images"
        for t in (images, *self.runner.tensors()):
            if type(t) not in PLAIN or t.is_nested or t.layout is not torch.strided:
                return "it was called with tensors of another kind"
            if not t.is_cpu or t.dtype not in (torch.float32, torch.bool) or (t.ndim == 1 and not t.is_contiguous()):
                return "the kernels are for float32 on the CPU"
        geometry = self.runner.geometry(images)
        if geometry is None:
            return "its input has another size than its layers take"
        for branch, where in zip(self.program.branches(), geometry.branches, strict=True):
            output = where.output
            if branch.norm is not None and branch.norm.training and output.images * output.rows * output.columns == 1:
                return "a batch norm gets one value a channel"
        return self._too_dense(geometry)

    def _too_dense(self, geometry: Geometry) -> str | None:
        """Why too many products would be computed; None when they are few enough."""
        products, live, images = 0, 0, geometry.values[0].images
        for branch, where in zip(self.program.branches(), geometry.branches, strict=True):
            pixels, (active, size) = where.output.rows * where.output.columns, self.network.count(branch.conv.weight)
            products += pixels * size
            live += pixels * active
        if live * geometry.values[0].blocks * LANES <= DENSEST * products * images:
            return None
        return f"{live / products:.0%} of the products are of live weights, in a batch of {images}: too many to pay"


def _dense(program: Program, images: Tensor) -> tuple[Tensor, ...]:
    """What a program computes, by its modules. A value goes with its last reader: to keep all costs a fifth of the time."""
    values, left = {0: images}, program.readers()

    def read(value: int) -> Tensor:
        left[value] -= 1
        return values[value] if left[value] else values.pop(value)

    for number, unit in enumerate(program.units, 1):
        terms = [b.conv(read(b.source)) for b in unit.branches]
        terms = [t if b.norm is None else b.norm(t) for t, b in zip(terms, unit.branches, strict=True)]
        total = terms[0] if len(terms) == 1 else terms[0] + terms[1]
        total = total if unit.added is None else total + read(unit.added)
        # In place: nobody else reads a sum before its ReLU, nor does a backward.
        values[number] = F.relu(total, inplace=True) if unit.rectify else total
    return tuple(values[value].mean((2, 3)) if mean else values[value] for value, mean in program.outputs)
