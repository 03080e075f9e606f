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
# Where weights lie, by Vela's memory mode: on the chip, as fast as all else is, or in flash beside it, whose reads take long.
MEMORIES = {"sram": "Sram_Only", "flash": "Shared_Sram"}
MEMORY = "flash"  # as on most microcontrollers
# Vela's systems (clock, memories and their speeds), by the kind of processor: on U55 and U65 those of Arm's embedded parts.
_SYSTEMS = {
    "ethos-u55": {"sram": "Ethos_U55_High_End_Embedded", "flash": "Ethos_U55_High_End_Embedded"},
    "ethos-u65": {"sram": "Ethos_U65_Embedded", "flash": "Ethos_U65_Embedded"},
    "ethos-u85": {"sram": "Ethos_U85_SYS_DRAM_Mid", "flash": "Ethos_U85_SYS_Flash_High"},
}


@dataclass(frozen=True)
class EthosU:
    """A network for an Ethos-U.

    Attributes:
        target: the processor, one of ``TARGETS``.
        memory: where weights lie, one of ``MEMORIES``.
        pte: the program, for executorch's runtime on a device with this processor.
        int8: the int8 network as torch computes it.
        estimate: Vela's, of the part that runs on the processor.
        on_cpu: how many operators of each kind are left to the CPU beside it: where there are any, ``estimate`` is not the
            whole network's.
    """

    target: str
    memory: str
    pte: bytes
    int8: Int8
    estimate: Estimate
    on_cpu: dict[str, int]
    _graph: fx.GraphModule
    _tosa: dict[str, bytes]  # by the name of the part of the graph

    def estimate_in(self, memory: str) -> Estimate:
        """Return Vela's estimate of the same network with its weights in another memory.

        Raises: InputError for an unknown memory.
        """
        options = list(_spec(self.target, memory).compiler_flags)
        with tempfile.TemporaryDirectory(prefix="ethos-u-") as name:
            return estimate(self._tosa.values(), options, Path(name))

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
    memory: str = MEMORY,
    folder: Path | None = None,
    report: Callable[[str], None] = lambda stage: None,
) -> EthosU:
    """Put a model with its zeros into int8 and compile it for an Ethos-U, with executorch's settings for the processor.

    Args:
        model: the network; it is not changed.
        masks: bool tensors by parameter name; ``{}`` for a dense network.
        samples: inputs, (N, …), on which ranges of activations are taken: 128 or so, of the training set.
        target: the processor, one of ``TARGETS``.
        memory: where weights lie on the device, one of ``MEMORIES``; the program is compiled for it.
        folder: for files while it works; by default, or where its path has a space, the system's temporary one.
        report: is called with the name of each stage as it begins.

    Raises: InputError without the extra, for an unknown target or memory, and for what torch, executorch or Vela refuses.

    Example::

        compiled = fs.export.compile_ethos_u(model, training.masks, images)
        compiled.estimate.cycles, compiled.estimate.encoded_weight_bytes
        accuracy = (compiled.int8(test_images).argmax(1) == labels).float().mean()
        Path("model.pte").write_bytes(compiled.pte)
    """
    spec = _spec(target, memory)
    quantizers, arm = (
        needed("executorch.backends.arm.quantizer", EXTRA),
        needed("executorch.backends.arm.ethosu", EXTRA),
    )
    needed("ethosu.vela.vela", EXTRA), needed("tosa_serializer", EXTRA)
    # executorch splits Vela's options at spaces.
    where = None if folder is None or " " in str(folder.absolute()) else folder.absolute()
    with tempfile.TemporaryDirectory(dir=where, prefix="ethos-u-") as name:
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
    return EthosU(target, memory, lowered.pte, int8, found, lowered.on_cpu, lowered.graph, tosa)


def _spec(target: str, memory: str) -> Any:
    """Return executorch's settings of a target and a memory. Raises InputError for an unknown one, and without the extra."""
    for kind, given, known in (("target", target, TARGETS), ("memory", memory, MEMORIES)):
        if given not in known:
            raise unknown(kind, given, known)
    system = _SYSTEMS[target.rpartition("-")[0]][memory]
    arm = needed("executorch.backends.arm.ethosu", EXTRA)
    return arm.EthosUCompileSpec(target, system_config=system, memory_mode=MEMORIES[memory])


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
