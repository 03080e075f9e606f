"""Int8 programs for the CPUs of phones, through executorch and XNNPACK; they run here too. Needs the extra ``edge``."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatsparse.common.errors import InputError
from flatsparse.common.files import read
from flatsparse.export.extras import c_quiet, needed, reason
from flatsparse.export.int8 import EXTRA, Int8, to_int8
from flatsparse.export.lowering import lower

# By executorch's number of the type: of images, and of numbers of words.
_DTYPES = {3: torch.int32, 4: torch.int64, 5: torch.float16, 6: torch.float32, 7: torch.float64}


@dataclass(frozen=True)
class Xnnpack:
    """A network for XNNPACK.

    Attributes:
        pte: the program, for executorch's runtime with its XNNPACK backend; it takes one sample at a time.
        int8: the int8 network as torch computes it.
        on_cpu: how many operators of each kind are left to executorch's slow portable kernels.
    """

    pte: bytes
    int8: Int8
    on_cpu: dict[str, int]


def compile_xnnpack(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    samples: Tensor,
    *,
    report: Callable[[str], None] = lambda stage: None,
) -> Xnnpack:
    """Put a model with its zeros into int8 and compile it for XNNPACK.

    Args:
        model: the network; it is not changed.
        masks: bool tensors by parameter name; ``{}`` for a dense network.
        samples: inputs, (N, …), on which ranges of activations are taken: 128 or so, of the training set.
        report: is called with the name of each stage as it begins.

    Raises: InputError without the extra, and for a network that torch or executorch refuses.
    """
    quantizers = needed("executorch.backends.xnnpack.quantizer.xnnpack_quantizer", EXTRA)
    partition = needed("executorch.backends.xnnpack.partition.xnnpack_partitioner", EXTRA)
    report("quantizing")
    quantizer = quantizers.XNNPACKQuantizer()
    quantizer.set_global(quantizers.get_symmetric_quantization_config(is_per_channel=True))
    int8 = to_int8(model, masks, samples, quantizer)
    report("compiling")
    lowered = lower(int8, partition.XnnpackPartitioner(), "XNNPACK")
    return Xnnpack(lowered.pte, int8, lowered.on_cpu)


def load_xnnpack(file: str | os.PathLike[str]) -> Callable[[Tensor], Tensor]:
    """Load a program into executorch's runtime, as a function from inputs to outputs.

    The samples of a batch are computed one after another, as on a device, with as many threads as torch had when this process
    loaded its first program.

    Raises: InputError without the extra, for a file that is no program, and, when called, for inputs of another shape.
    """
    runtime, content = _runtime(), read(Path(file))
    try:
        with c_quiet():
            checks = needed("executorch.runtime", EXTRA).Verification.InternalConsistency
            method = runtime.load_program(content, verification=checks).load_method("forward")
            taken = method.metadata.input_tensor_meta(0)
            shape, dtype = tuple(taken.sizes()), _DTYPES.get(taken.dtype())
    except Exception as problem:
        raise InputError(
            f"executorch cannot run '{file}' ({reason(problem)}): it is damaged, or has an operator that"
            " this runtime was not built with"
        ) from None

    @torch.no_grad()
    def run(inputs: Tensor, content: bytes = content) -> Tensor:  # which the runtime reads from and does not keep
        if inputs.shape[1:] != shape[1:] or inputs.dtype != dtype:
            raise InputError(
                f"'{file}' does not take inputs {tuple(inputs.shape)} of {inputs.dtype}: give {dtype} with samples of"
                f" {shape[1:]}"
            )
        rows = inputs.cpu().clone(memory_format=torch.contiguous_format)  # the runtime takes no other order of memory
        outputs = [method.execute([sample[None]])[0].clone() for sample in rows]
        return torch.cat(outputs).to(inputs.device)

    return run


@functools.cache
def _runtime() -> Any:
    """Return executorch's runtime. Its threads are set once, as a program that is loaded before would end the process."""
    runtime = needed("executorch.runtime", EXTRA)
    with c_quiet():
        needed("executorch.extension.pybindings.portable_lib", EXTRA)._unsafe_reset_threadpool(torch.get_num_threads())
    return runtime.Runtime.get()
