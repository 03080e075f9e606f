"""Files that execute code where a reader lets them: each would make a folder, the marker."""

from __future__ import annotations

import io
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Evil:
    """An object that makes the marker when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def pickled(marker: Path, protocol: int = 2) -> bytes:
    return pickle.dumps(Evil(marker), protocol)


def zipped(marker: Path) -> bytes:
    """As torch.save writes now."""
    stream = io.BytesIO()
    torch.save({"state_dict": {"weight": torch.zeros(2, 2)}, "x": Evil(marker)}, stream)
    return stream.getvalue()


def legacy(marker: Path) -> bytes:
    """As torch.save once wrote: pickles one after another."""
    stream = io.BytesIO()
    torch.save({"weight": torch.zeros(2, 2), "x": Evil(marker)}, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def array(marker: Path) -> bytes:
    """An ``.npy`` file of objects."""
    stream = io.BytesIO()
    held = np.empty(5, dtype=object)
    held[:] = [Evil(marker)] * 5
    np.save(stream, held, allow_pickle=True)
    return stream.getvalue()


def arrays(marker: Path, *, compressed: bool = False) -> bytes:
    """An ``.npz`` file, of which both arrays are of objects."""
    stream, held = io.BytesIO(), np.empty(5, dtype=object)
    held[:] = [Evil(marker)] * 5
    (np.savez_compressed if compressed else np.savez)(stream, images=held, labels=held)
    return stream.getvalue()


def batch(marker: Path) -> bytes:
    """A CIFAR batch whose labels are evil; its pixels are as they should be."""
    content = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, Evil(marker)], b"fine_labels": Evil(marker)}
    return pickle.dumps(content, protocol=2)


def named(marker: Path, protocol: int) -> bytes:
    """A pickle that goes from an admitted class to what is not: by a dotted name in protocol 4, else by ``getattr``."""
    if protocol >= 4:
        name = b"ndarray.__class__.__base__.__subclasses__"
        text = b"\x8c\x05numpy" + b"\x8c" + struct.pack("B", len(name)) + name
        return b"\x80\x04" + text + b"\x93)R."
    return b'cbuiltins\neval\n(S\'__import__("os").mkdir("' + str(marker).encode() + b"\")'\ntR."


def table(file: Path, marker: Path, column: str) -> None:
    """A parquet file with a column of a type that Arrow once unpickled (CVE-2023-47248)."""
    import pyarrow
    from pyarrow import parquet

    evil = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickled(marker)}
    fields = [
        pyarrow.field(column, pyarrow.binary(), metadata=evil),
        pyarrow.field("label", pyarrow.int64(), metadata=evil),
    ]
    rows = [pyarrow.array([b"no image"] * 2, pyarrow.binary()), pyarrow.array([0, 1], pyarrow.int64())]
    parquet.write_table(pyarrow.Table.from_arrays(rows, schema=pyarrow.schema(fields)), file)
