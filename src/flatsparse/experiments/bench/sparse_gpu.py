"""2:4 sparsity on NVIDIA GPUs: dense linear layers beside torch's semi-structured kernels, forward and in training."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flatsparse.common.errors import InputError
from flatsparse.experiments.bench.results import ratio_json
from flatsparse.experiments.bench.sparse_cases import Kind
from flatsparse.experiments.bench.sparse_forms import CONTROL, DENSE
from flatsparse.experiments.bench.sparse_timing import interleaved, speeds

SECONDS = 1.0  # for each batch and kind of work
CALLS = 10  # timed at once, as a device works on while the next call is prepared
WARM_UP = 2
AGREES = 3e-2  # relative, in half precision
BACKENDS = {
    "2:4, cuSPARSELt": "SparseSemiStructuredTensorCUSPARSELT",
    "2:4, CUTLASS": "SparseSemiStructuredTensorCUTLASS",
}
FORWARD_ONLY = (
    " (forward)"  # of a training step; gradients are dense products, as for weights that are 2:4 along inputs only
)


@dataclass(frozen=True)
class GPUCase:
    """A square linear layer.

    Attributes:
        width: of its inputs and outputs.
        dtype: of weights and activations.
        batches: sizes, each measured.
    """

    width: int
    dtype: torch.dtype
    batches: tuple[int, ...] = (512, 2048, 8192)

    @property
    def title(self) -> str:
        """What it is, in a few words."""
        return f"linear {self.width} → {self.width}, {str(self.dtype).removeprefix('torch.')}"


CASES = {
    f"linear-{width}-{name}": GPUCase(width, dtype)
    for name, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16))
    for width in (1024, 2048, 4096, 8192)
}
QUICK_CASES = {"linear-256-float16": GPUCase(256, torch.float16, (64, 128))}


def check_device(device: str) -> None:
    """Raise InputError for a device without 2:4 kernels."""
    if not device.startswith("cuda"):
        raise InputError(f"bench sparse has nothing to measure on {device}: give --device cpu or cuda")
    if torch.cuda.get_device_capability(device) < (8, 0):
        raise InputError(
            f"{torch.cuda.get_device_name(device)} has no 2:4 kernels, which need compute capability 8.0: give --device cpu"
        )


class CompressedLinear(torch.autograd.Function):
    """A linear layer whose weight is compressed anew in each step.

    Forward and the gradient to the input are sparse products; the gradient of the weight is a dense one, so that pruned weights
    can come back (after Hubara et al. 2021: tiles of 4×4 that are 2:4 along both sides).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, compress: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weight = compress(weight)
        return F.linear(x, ctx.weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (x,), (dy,) = ctx.saved_tensors, gradients
        return dy @ ctx.weight, dy.t() @ x, None


class ForwardCompressed(torch.autograd.Function):
    """A linear layer whose weight, 2:4 along its inputs, is compressed anew in each step, for the forward alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, compress: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x, compress(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (x, weight), (dy,) = ctx.saved_tensors, gradients
        return dy @ weight, dy.t() @ x, None


def two_of_four(weight: Tensor) -> Tensor:
    """Return a weight (outputs, inputs) with zeros but at the two largest of each four consecutive inputs."""
    groups = weight.unflatten(1, (-1, 4))
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, groups.abs().topk(2, -1).indices, True)
    return (groups * kept).flatten(1)


def measured(
    case: GPUCase,
    batch: int,
    kind: Kind,
    device: str,
    *,
    rounds: int | None = None,
    seconds: float = SECONDS,
    tell: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
    """Return the record of one kind of work at one batch: times, speeds, and why a backend was left out.

    Inference has its weight compressed beforehand; a training step is forward and backward and compresses it first. Calls are
    those of eager torch, with what they cost to launch.
    """
    source = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source, device=device, dtype=case.dtype)

    x, weight, dy = normal(batch, case.width), normal(case.width, case.width), normal(batch, case.width)
    works = {name: _dense(kind, x, weight, dy) for name in (DENSE, CONTROL)}
    left_out: dict[str, str] = {}
    ways = {name: (kernel, False) for name, kernel in BACKENDS.items()}
    if kind == "training":
        ways |= {name + FORWARD_ONLY: (kernel, True) for name, kernel in BACKENDS.items()}
    for name, (kernel, forward_only) in ways.items():
        try:
            work = _two_four(kind, getattr(torch.sparse, kernel), x, weight, dy, forward_only=forward_only)
            work()
            works[name] = work
        except (RuntimeError, NotImplementedError, AttributeError, AssertionError) as problem:
            left_out[name] = str(problem).partition("\n")[0] or type(problem).__name__
    for work in list(works.values()) * WARM_UP:
        work()
    times = interleaved(
        {name: _timed(work, device) for name, work in works.items()}, rounds=rounds, seconds=seconds, tell=tell
    )
    ratios = speeds(times)
    return {
        "batch": batch,
        "forms": {
            name: {"speed": ratio_json(ratios.get(name)), "seconds": [float(f"{value:.5g}") for value in each]}
            for name, each in times.items()
        },
        "left_out": left_out,
        "layers": {},
    }


def _dense(kind: Kind, x: Tensor, weight: Tensor, dy: Tensor) -> Callable[[], None]:
    return _forward(x, weight) if kind == "inference" else _step(x, weight, dy, F.linear)


def _two_four(
    kind: Kind, kernel: Any, x: Tensor, weight: Tensor, dy: Tensor, *, forward_only: bool
) -> Callable[[], None]:
    """The work of a backend. Raises RuntimeError where it cannot be done, or is not done right."""
    if kind == "inference" or forward_only:
        plain = two_of_four(weight)
        compressed = kernel.from_dense(plain)
        _check(F.linear(x, compressed), F.linear(x, plain))
        if kind == "inference":
            return _forward(x, compressed)
        return _step(x, plain, dy, lambda x, weight: ForwardCompressed.apply(x, weight, kernel.from_dense))
    compress = kernel.prune_dense_static_sort
    compressed = compress(weight)
    plain = compressed.to_dense()
    _check(F.linear(x, compressed), F.linear(x, plain))
    _check(dy @ compressed, dy @ plain)
    return _step(x, weight, dy, lambda x, weight: CompressedLinear.apply(x, weight, compress))


def _check(result: Tensor, wanted: Tensor) -> None:
    far = float((result.float() - wanted.float()).norm() / wanted.float().norm())
    if not far <= AGREES:
        raise RuntimeError(f"its results are wrong by {far:.1g}, relative")


def _forward(x: Tensor, weight: Tensor) -> Callable[[], None]:
    def work() -> None:
        with torch.no_grad():
            F.linear(x, weight)

    return work


def _step(x: Tensor, weight: Tensor, dy: Tensor, layer: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], None]:
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()

    def work() -> None:
        x.grad = weight.grad = None
        layer(x, weight).backward(dy)

    return work


def _timed(work: Callable[[], None], device: str) -> Callable[[], float]:
    """What runs a work several times and returns the seconds that one took: by the device's own clock on a GPU."""

    def on_cpu() -> float:
        began = time.perf_counter()
        for _ in range(CALLS):
            work()
        return (time.perf_counter() - began) / CALLS

    def on_gpu() -> float:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in "ab")
        first.record()
        for _ in range(CALLS):
            work()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1000 / CALLS

    return on_gpu if device.startswith("cuda") else on_cpu
