"""Sparse models in forms that others can use; see docs/export.md for the files."""

from flatsparse.export.csr import load_csr, save_csr, to_csr
from flatsparse.export.dense import save_dense, with_zeros
from flatsparse.export.onnx import check_onnx, save_onnx
from flatsparse.export.semi_structured import to_semi_structured

__all__ = [
    "check_onnx",
    "load_csr",
    "save_csr",
    "save_dense",
    "save_onnx",
    "to_csr",
    "to_semi_structured",
    "with_zeros",
]
