"""CIFAR-10 and CIFAR-100, in the forms that they come in."""

from __future__ import annotations

import dataclasses
import functools
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flatsparse.common.errors import InputError
from flatsparse.common.files import check_is_file
from flatsparse.experiments.data.folders import read_folder
from flatsparse.experiments.data.parts import assembled
from flatsparse.experiments.data.pixels import brief
from flatsparse.experiments.data.samples import DataSet, Samples
from flatsparse.experiments.data.tables import hub_parts

CIFAR_BYTES = 3 * 32 * 32  # of an image


@functools.cache
def cifar10(data_dir: Path) -> DataSet:
    """CIFAR-10 (Krizhevsky 2009) from the classic folder, local parquet files or the hub, whichever is found first."""
    classic = next((p for p in (data_dir / "cifar-10-batches-py", data_dir) if os.path.isfile(p / "test_batch")), None)
    if classic is None:
        return _cifar_elsewhere("cifar10", "cifar-10-batches-py", "uoft-cs/cifar10", data_dir, classes=10)
    pool = _cifar_batches([classic / f"data_batch_{i}" for i in range(1, 6)], b"labels", 10)
    return _cifar("cifar10", classic, pool, _cifar_batches([classic / "test_batch"], b"labels", 10), classes=10)


@functools.cache
def cifar100(data_dir: Path) -> DataSet:
    """CIFAR-100 (Krizhevsky 2009), fine labels, from the same kinds of sources."""
    classic = data_dir / "cifar-100-python"
    if not os.path.isfile(classic / "test"):
        return _cifar_elsewhere("cifar100", "cifar-100-python", "uoft-cs/cifar100", data_dir, classes=100)
    pool, test = (_cifar_batches([classic / part], b"fine_labels", 100) for part in ("train", "test"))
    return _cifar("cifar100", classic, pool, test, classes=100)


def _cifar(name: str, folder: Path, pool: Samples, test: Samples, classes: int) -> DataSet:
    source = str(folder.resolve())
    return _with_note_of_size(
        DataSet(name, pool, test, classes=classes, augmented=True, validation_size=5000, source=source)
    )


def _with_note_of_size(data: DataSet) -> DataSet:
    """Return a data set, with a note when it has not as many images as CIFAR."""
    counts = len(data.pool), len(data.test)
    if counts == (50_000, 10_000):
        return data
    note = (
        f"{data.name} has 50,000 training and 10,000 test images; '{data.source}' has {counts[0]:,} and {counts[1]:,}"
    )
    return dataclasses.replace(data, notes=(*data.notes, note))


def _cifar_elsewhere(name: str, classic: str, hub: str, data_dir: Path, *, classes: int) -> DataSet:
    """Return a known set from a folder of its own name, or from the hub; a folder of another name is another set."""
    local = data_dir / name
    data = read_folder(local, name) if os.path.isdir(local) else _cifar_of_hub(name, classic, hub, data_dir)
    if data.pool.shape != (32, 32, 3) or data.classes > classes:
        shape = "x".join(map(str, data.pool.shape))
        raise InputError(
            f"'{data.source}' is not {name}: it has {data.classes} classes of images of {shape}, wanted {classes} of"
            " 32x32x3; give its folder another name, and --data its path"
        )
    held_out = 5000 if data.validation is None else data.validation_size
    notes = data.notes
    if os.path.isdir(local) and local.resolve().name != name:
        notes = (*notes, f"{name} is read from '{local.resolve()}', which may be another version of it")
    return _with_note_of_size(dataclasses.replace(data, classes=classes, validation_size=held_out, notes=notes))


def _cifar_of_hub(name: str, classic: str, hub: str, data_dir: Path) -> DataSet:
    try:
        return assembled(name, f"hub:{hub}", hub_parts(hub, name))
    except InputError as problem:
        like = next(iter(sorted(data_dir.glob(f"{name}_*"))), None)
        hint = f"; '{like}' is another set, which --data {like} takes" if like else ""
        raise InputError(
            f"no {name} under '{data_dir}': put the folder {classic}, {name}/*.parquet or {name}/train.npz and test.npz"
            f" there and name the folder with --data-dir or FLATSPARSE_DATA ({problem}){hint}"
        ) from None


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler of arrays and plain values; anything else a pickle could run is refused."""

    ALLOWED = frozenset({("_codecs", "encode"), ("numpy", "ndarray"), ("numpy", "dtype")})

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return super().find_class("numpy._core.multiarray", name)
        if (module, name) in self.ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it wants to load {module}.{name}, which no image data needs")


def _cifar_batches(files: Sequence[Path], key: bytes, classes: int) -> Samples:
    """Return the images of files one after another; each is read into its place, so that no image is held twice."""
    stack = np.empty((sum(_size(file) // CIFAR_BYTES for file in files), 32, 32, 3), np.uint8)
    labels: list[np.ndarray] = []
    count = 0
    for file in files:
        pixels, own = _cifar_batch(file, key, classes)
        stack[count : count + len(own)] = pixels.transpose(0, 2, 3, 1)
        labels.append(own)
        count += len(own)
        del pixels  # before the next file is read
    return Samples(torch.from_numpy(stack[:count]), torch.from_numpy(np.concatenate(labels)))


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _cifar_batch(file: Path, key: bytes, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the images (N, 3, 32, 32) and labels of a file."""
    check_is_file(file)
    try:
        with file.open("rb") as stream:
            batch = _PlainUnpickler(stream, encoding="bytes").load()
        pixels = np.asarray(batch[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
        labels = np.asarray(batch[key], dtype=np.int64)
    except Exception as problem:  # a damaged pickle can raise nearly anything
        raise InputError(f"'{file}' is not a whole CIFAR batch ({brief(problem)}): fetch it again") from None
    if len(pixels) != len(labels) or len(labels) == 0 or labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"'{file}' holds {len(pixels)} images and {len(labels)} labels, not all in 0 … {classes - 1}: fetch it again"
        )
    return pixels, labels
