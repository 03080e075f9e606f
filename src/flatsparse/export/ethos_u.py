"""Programs for Arm's Ethos-U processors, through executorch and Vela. Needs the extra ``edge``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from flatsparse.common.errors import InputError, unknown
from flatsparse.export.extras import c_quiet, needed
from flatsparse.export.int8 import EXTRA, Int8, to_int8
from flatsparse.export.lowering import Lowered, is_delegate, lower
from flatsparse.export.vela import Estimate, estimate

TARGETS = (
    *("ethos-u55-32", "ethos-u55-64", "ethos-u55-128", "ethos-u55-256", "ethos-u65-256", "ethos-u65-512"),
    *("ethos-u85-128", "ethos-u85-256", "ethos-u85-512", "ethos-u85-1024", "ethos-u85-2048"),
)
TARGET = "ethos-u85-256"  # the U85 alone skips zeros of 2:4


@dataclass(frozen=True)
class EthosU:
    """A network for an Ethos-U.

    Attributes:
        target: the processor, one of ``TARGETS``.
        pte: the program, for executorch's runtime on a device with this processor.
        int8: the int8 network as torch computes it.
        estimate: Vela's, of the part that runs on the processor.
        on_cpu: how many operators of each kind are left to the CPU beside it: where there are any, ``estimate`` is not the
            whole network's.
    """

    target: str
    pte: bytes
    int8: Int8
    estimate: Estimate
    on_cpu: dict[str, int]
    _graph: fx.GraphModule
    _tosa: dict[str, bytes]  # by the name of the part of the graph

    def reference(self, inputs: Tensor) -> Tensor:
        """Compute outputs by the programs that Vela compiled, in Arm's reference model of TOSA, sample by sample.

        No PC runs what Vela writes. What it reads is computed here, in int8 and int32, bit by bit as TOSA is specified.

        Raises: InputError when the reference model refuses a program.
        """
        run = _Reference(self._graph, self._tosa)
        with torch.no_grad():
            return torch.cat([_first(run.run(sample[None].cpu())) for sample in inputs]).to(inputs.device)


def compile_ethos_u(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    samples: Tensor,
    *,
    target: str = TARGET,
    folder: Path | None = None,
    report: Callable[[str], None] = lambda stage: None,
) -> EthosU:
    """Put a model with its zeros into int8 and compile it for an Ethos-U, with executorch's settings for the processor.

    Args:
        model: the network; it is not changed.
        masks: bool tensors by parameter name; ``{}`` for a dense network.
        samples: inputs, (N, …), on which ranges of activations are taken: 128 or so, of the training set.
        target: the processor, one of ``TARGETS``.
        folder: for files while it works; by default, or where its path has a space, the system's temporary one.
        report: is called with the name of each stage as it begins.

    Raises: InputError without the extra, for an unknown target, and for a network that torch, executorch or Vela refuses.

    Example::

        compiled = fs.export.compile_ethos_u(model, training.masks, images)
        compiled.estimate.cycles, compiled.estimate.encoded_weight_bytes
        accuracy = (compiled.int8(test_images).argmax(1) == labels).float().mean()
        Path("model.pte").write_bytes(compiled.pte)
    """
    if target not in TARGETS:
        raise unknown("target", target, TARGETS)
    quantizers, arm = (
        needed("executorch.backends.arm.quantizer", EXTRA),
        needed("executorch.backends.arm.ethosu", EXTRA),
    )
    needed("ethosu.vela.vela", EXTRA), needed("tosa_serializer", EXTRA)
    where = (
        None if folder is None or " " in str(folder.absolute()) else folder.absolute()
    )  # executorch splits Vela's options at spaces
    with tempfile.TemporaryDirectory(dir=where, prefix="ethos-u-") as name:
        spec = arm.EthosUCompileSpec(target)
        options = list(spec.compiler_flags)  # of which executorch makes more
        spec.dump_intermediate_artifacts_to(name)
        report("quantizing")
        quantizer = quantizers.EthosUQuantizer(spec)
        quantizer.set_global(quantizers.get_symmetric_quantization_config(is_per_channel=True))
        int8 = to_int8(model, masks, samples, quantizer)
        report("compiling")
        lowered = lower(int8, arm.EthosUPartitioner(spec), target)
        tosa = _programs(lowered, Path(name))
        report("estimating")
        found = estimate(tosa.values(), options, Path(name))
    return EthosU(target, lowered.pte, int8, found, lowered.on_cpu, lowered.graph, tosa)


def _programs(lowered: Lowered, folder: Path) -> dict[str, bytes]:
    """Return the TOSA flatbuffers that executorch wrote, by the names of the parts in the graph."""
    found = {}
    for node in filter(is_delegate, lowered.graph.graph.nodes):
        part = node.args[0].target
        nodes = getattr(lowered.graph, part).original_module.graph.nodes
        tag = next(each.meta["delegation_tag"] for each in nodes if each.meta.get("delegation_tag"))
        (file,) = folder.glob(f"output_{tag}_*.tosa")
        found[part] = file.read_bytes()
    return found


class _Reference(fx.Interpreter):
    """Runs a lowered program; the parts of the processor in the reference model."""

    def __init__(self, graph: fx.GraphModule, tosa: dict[str, bytes]) -> None:
        super().__init__(graph)
        self._model, self._tosa = needed("tosa_reference_model", EXTRA), tosa

    def run_node(self, n: fx.Node) -> Any:
        if not is_delegate(n):
            return super().run_node(n)
        args, _ = self.fetch_args_kwargs_from_env(n)
        inputs = [np.ascontiguousarray(tensor.numpy()) for tensor in args[1:]]
        with c_quiet():  # where it says for each sample that the program's version is older than its own
            outputs, status = self._model.run(self._tosa[str(n.args[0].target)], inputs, verbosity="NONE")  # type: ignore[union-attr]
        if status != self._model.GraphStatus.TOSA_VALID:
            raise InputError(f"the reference model of TOSA refuses the network's program ({status})")
        return [torch.from_numpy(np.asarray(output)) for output in outputs]


def _first(outputs: Any) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs[0]
