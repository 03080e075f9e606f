"""Networks in int8 by torch's PT2E quantization, as executorch's backends take them. Needs the extra ``edge``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flatsparse.common.errors import InputError
from flatsparse.export.dense import with_zeros
from flatsparse.export.extras import needed, quiet, reason

EXTRA = "edge"
BATCH = 32  # samples that the program computes at once where they are many


@dataclass(frozen=True)
class Int8:
    """A network in int8, computed by torch: each weight and activation is rounded to int8, and sums are in float32.

    Called with float inputs of any batch size it returns float outputs. A device that sums in int32 and rounds after each
    layer gives the same up to some steps of the outputs' scale.

    Attributes:
        one: the program for one sample, which backends compile.
        many: the same numbers for ``BATCH`` samples at once.
        sample: inputs of one sample, (1, …).
    """

    one: torch.fx.GraphModule
    many: torch.fx.GraphModule
    sample: Tensor

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the outputs of a batch of any size, on its device. Raises InputError for samples of another shape or type."""
        if inputs.shape[1:] != self.sample.shape[1:] or inputs.dtype != self.sample.dtype:
            raise InputError(
                f"this int8 network does not take inputs {tuple(inputs.shape)} of {inputs.dtype}: give {self.sample.dtype} with"
                f" samples of {tuple(self.sample.shape[1:])}"
            )
        outputs = []
        for part in inputs.cpu().split(BATCH):
            full = part if len(part) == BATCH else part[torch.arange(BATCH) % len(part)]
            outputs.append(self.many(full)[: len(part)])
        return torch.cat(outputs).to(inputs.device)

    def weights(self) -> list[Tensor]:
        """Return the int8 weights of convolutions and linear layers, in the order of the program."""
        found = []
        for node in self.one.graph.nodes:
            if node.op == "call_function" and any(kind in str(node.target) for kind in ("aten.conv", "aten.linear")):
                source = node.args[1]
                while source.op == "call_function":  # which makes floats of it
                    source = source.args[0]
                found.append(getattr(self.one, source.target))
        return found


def to_int8(model: nn.Module, masks: Mapping[str, Tensor], samples: Tensor, quantizer: Any) -> Int8:
    """Return a model with its zeros in int8; ranges of activations are those that samples have.

    Weights are symmetric, so that a weight that is zero stays exactly zero, also where a batch norm is folded into it.

    Args:
        model: the network; it is not changed.
        masks: bool tensors by parameter name.
        samples: inputs, (N, …), of data that the network may see: not of the test set.
        quantizer: of ``torchao.quantization.pt2e``, as executorch's backends have them.

    Raises: InputError without the extra, and for a model that torch cannot export or quantize or that has not one tensor
        for output.
    """
    pt2e = needed("torchao.quantization.pt2e.quantize_pt2e", EXTRA)
    copy, samples = _in_rows(with_zeros(model, masks).cpu()), samples.cpu()
    full = samples[
        torch.arange(-(-len(samples) // BATCH) * BATCH) % len(samples)
    ]  # whole batches, as programs have one size
    full = full.clone(memory_format=torch.contiguous_format)  # programs keep the order of the sample's memory
    with quiet(), torch.no_grad():
        try:
            output = copy(samples[:1])
            if not isinstance(output, Tensor) or len(output) != 1:
                raise InputError("its output is not one tensor with a row for each sample")
            many = pt2e.prepare_pt2e(_exported(copy, full[:BATCH]), quantizer)
            for part in full.split(BATCH):
                many(part)
            one = pt2e.prepare_pt2e(_exported(copy, full[:1]), quantizer)
            one(full[:1])  # as observers take their shapes from what they see
            one.load_state_dict(many.state_dict())
            return Int8(pt2e.convert_pt2e(one), pt2e.convert_pt2e(many), full[:1])
        except Exception as problem:  # of any kind, with messages that run to pages
            raise InputError(f"torch cannot put this {type(model).__name__} into int8 ({reason(problem)})") from problem


def _in_rows(model: nn.Module) -> nn.Module:
    """Return a model, changed so that its tensors lie in rows, also where they were in channels-last."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    return model


def _exported(model: nn.Module, inputs: Tensor) -> torch.fx.GraphModule:
    program = torch.export.export(model, (inputs,), strict=True)
    return program.module(check_guards=False)  # type: ignore[return-value]  # as torchao takes no guards
