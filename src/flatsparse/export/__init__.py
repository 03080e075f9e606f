"""Export of sparse models to formats that other programs read; docs/export.md describes the files."""

from flatsparse.export.csr import load_csr, save_csr, to_csr
from flatsparse.export.delta import DeltaSize, apply_delta, save_delta
from flatsparse.export.dense import save_dense, with_zeros
from flatsparse.export.ethos_u import EthosU, compile_ethos_u
from flatsparse.export.int8 import Int8
from flatsparse.export.onnx import load_onnx, save_onnx
from flatsparse.export.semi_structured import to_semi_structured
from flatsparse.export.small import load_small, save_small
from flatsparse.export.vela import Estimate
from flatsparse.export.xnnpack import Xnnpack, compile_xnnpack, load_xnnpack

__all__ = [
    "DeltaSize",
    "Estimate",
    "EthosU",
    "Int8",
    "Xnnpack",
    "apply_delta",
    "compile_ethos_u",
    "compile_xnnpack",
    "load_csr",
    "load_onnx",
    "load_small",
    "load_xnnpack",
    "save_csr",
    "save_delta",
    "save_dense",
    "save_onnx",
    "save_small",
    "to_csr",
    "to_semi_structured",
    "with_zeros",
]
