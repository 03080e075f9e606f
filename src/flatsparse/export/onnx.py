"""ONNX, through torch's exporter, checked in onnxruntime. Needs the extra ``onnx``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from flatsparse.common.errors import InputError
from flatsparse.common.files import corrupt_file, read, write_atomic
from flatsparse.export.dense import with_zeros
from flatsparse.export.extras import needed, quiet, reason

_DIGITS = 64  # of a SHA-256 in hexadecimal
# Our files begin with an entry of their metadata that has the SHA-256 of all that follows: field 14 of the model, of 85 bytes.
_BEGIN = b"\x72\x55\x0a\x11flatsparse.sha256\x12\x40"


def save_onnx(file: str | os.PathLike[str], model: nn.Module, masks: Mapping[str, Tensor], sample: Tensor) -> None:
    """Write a model with its zeros as one ONNX file; its input is ``input``, with any batch size, its output ``output``.

    Args:
        file: the file to write.
        model: the network; it is not changed.
        masks: bool tensors by parameter name.
        sample: an input, (N, …); all but N is fixed by it.

    Raises: InputError without the extra, and when torch cannot export the model.
    """
    needed("onnx", "onnx"), needed("onnxscript", "onnx")
    copy = with_zeros(model, masks).cpu()
    sample = torch.cat([sample.cpu()] * 2)[:2]  # with one sample the exporter would fix the batch size
    with quiet():
        try:
            program = torch.onnx.export(
                copy,
                (sample,),
                dynamo=True,
                input_names=["input"],
                output_names=["output"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
            assert program is not None
            content = program.model_proto.SerializeToString()
        except Exception as problem:  # of any kind; the exporter's own message runs to pages
            raise InputError(
                f"torch cannot export this {type(model).__name__} to ONNX ({reason(problem)})"
            ) from problem
    write_atomic(Path(file), _BEGIN + hashlib.sha256(content).hexdigest().encode() + content)


def load_onnx(file: str | os.PathLike[str]) -> Callable[[Tensor], Tensor]:
    """Load a file into onnxruntime, as a function from inputs to outputs, on the CPU with as many threads as torch.

    Raises: InputError without the extra, when the file is corrupt, and, when called, for inputs of another shape.
    """
    runtime = needed("onnxruntime", "onnx")
    content, options = _checked(Path(file)), runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as problem:  # its errors have no common class of their own
        raise InputError(
            f"onnxruntime cannot run '{file}' ({reason(problem)}): it is damaged, or of a model in a type that it does"
            " not compute in; float32 is sure"
        ) from None

    def run(inputs: Tensor) -> Tensor:
        try:
            outputs = session.run(None, {session.get_inputs()[0].name: inputs.cpu().numpy()})[0]
        except Exception as problem:
            raise InputError(f"'{file}' does not take inputs {tuple(inputs.shape)} ({reason(problem)})") from None
        return torch.from_numpy(outputs).to(inputs.device)

    return run


def _checked(file: Path) -> bytes:
    """Return the content of a file; of one that others wrote nothing is known. Raises InputError for a damaged one of ours."""
    content = read(file)
    begin, body = content[: len(_BEGIN)], content[len(_BEGIN) + _DIGITS :]
    if sum(map(int.__eq__, begin, _BEGIN)) > len(_BEGIN) // 2:  # ours, even where some of these are damaged
        checksum = content[len(_BEGIN) : len(_BEGIN) + _DIGITS]
        if begin != _BEGIN or hashlib.sha256(body).hexdigest().encode() != checksum:
            raise corrupt_file(file, "its checksum does not fit")
    return content
