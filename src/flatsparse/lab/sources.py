"""Where data sets come from: embedded, classic folders, arrays, image folders, parquet, the hub."""

from __future__ import annotations

import functools
import io
import logging
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flatsparse.errors import InputError, unknown
from flatsparse.lab.data import DataSet, Images
from flatsparse.lab.pairs import pairs
from flatsparse.seeds import generator

EMBEDDED = ("digits", "pairs")
VALIDATION_SHARE = 0.1  # of a pool whose source suggests nothing


def load(name: str, data_dir: Path | None = None) -> DataSet:
    """A data set by name, folder or hub id.

    Args:
        name: one of ``SOURCES``; a folder with ``train.npz`` and ``test.npz``, with parquet files, or with images as
            ``train/CLASS/…`` and ``test/CLASS/…``; or a hub id such as ``owner/name``.
        data_dir: where local copies of named sets lie; by default the variable FLATSPARSE_DATA, else ``./data``.

    Raises: InputError for an unknown name, when no copy is found, or when one cannot be used.
    """
    named = data_dir or os.environ.get("FLATSPARSE_DATA")
    folder = Path(named or "data").expanduser()
    if name in SOURCES:
        if named and not folder.is_dir() and name not in EMBEDDED:
            raise InputError(
                f"data folder '{folder}' is not there: name the folder that holds the copies with --data-dir"
            )
        return SOURCES[name](folder)
    if Path(name).expanduser().is_dir():
        return _folder(Path(name).expanduser())
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _dataset(name, *_tables(name, name))
    raise unknown("data set, and no folder of that name,", name, SOURCES)


def _dataset(name: str, pool: Images, test: Images) -> DataSet:
    """A set of a source that says no more: classes are counted, and a tenth is held out."""
    classes = int(pool.labels.max()) + 1
    for part, images in (("train", pool), ("test", test)):
        if images.labels.min() < 0 or images.labels.max() >= classes:
            low, high = int(images.labels.min()), int(images.labels.max())
            raise InputError(
                f"labels of '{name}' ({part}) run from {low} to {high}: they must lie in 0 … {classes - 1}"
            )
    if pool.images.shape[1:] != test.images.shape[1:]:
        mine, theirs = (tuple(part.images.shape[1:]) for part in (pool, test))
        raise InputError(f"images of '{name}' are {mine} in train and {theirs} in test: make them of one size")
    held_out = round(VALIDATION_SHARE * len(pool))
    return DataSet(name, pool, test, classes, augmented=True, validation_size=held_out)


# -- named sets -------------------------------------------------------------------------------------------------------


@functools.cache
def _digits(data_dir: Path) -> DataSet:
    """1,797 real scans of handwritten digits, 8x8, grey (Alpaydin & Kaynak 1998), embedded: 797 for the test."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    images = torch.from_numpy(np.round(scans.images * (255 / 16)).astype(np.uint8))[..., None]
    everything = Images(images, torch.from_numpy(scans.target.astype(np.int64)))
    order = torch.randperm(len(everything), generator=generator("test", "digits"))  # the source is sorted by writer
    pool, test = everything.take(order[:1000]), everything.take(order[1000:])
    return DataSet("digits", pool, test, classes=10, augmented=False, validation_size=300)


@functools.cache
def _cifar10(data_dir: Path) -> DataSet:
    """CIFAR-10 (Krizhevsky 2009) from the classic folder, local parquet files or the hub, whichever is there first."""
    classic = next((p for p in (data_dir / "cifar-10-batches-py", data_dir) if (p / "test_batch").is_file()), None)
    if classic is not None:
        train = [_cifar_batch(classic / f"data_batch_{i}", b"labels", 10) for i in range(1, 6)]
        pool = Images(torch.cat([b.images for b in train]), torch.cat([b.labels for b in train]))
        test = _cifar_batch(classic / "test_batch", b"labels", 10)
    else:
        pool, test = _cifar_elsewhere("cifar10", "cifar-10-batches-py", "uoft-cs/cifar10", data_dir)
    return DataSet("cifar10", pool, test, classes=10, augmented=True, validation_size=5000)


@functools.cache
def _cifar100(data_dir: Path) -> DataSet:
    """CIFAR-100 (Krizhevsky 2009), fine labels, from the same kinds of places."""
    classic = data_dir / "cifar-100-python"
    if (classic / "test").is_file():
        pool, test = (_cifar_batch(classic / part, b"fine_labels", 100) for part in ("train", "test"))
    else:
        pool, test = _cifar_elsewhere("cifar100", "cifar-100-python", "uoft-cs/cifar100", data_dir)
    return DataSet("cifar100", pool, test, classes=100, augmented=True, validation_size=5000)


SOURCES: dict[str, Callable[[Path], DataSet]] = {
    "digits": _digits,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "pairs": pairs,
}


def _cifar_elsewhere(name: str, classic: str, hub: str, data_dir: Path) -> tuple[Images, Images]:
    local = next((p for p in (data_dir / name, *sorted(data_dir.glob(f"{name}_*"))) if p.is_dir()), None)
    if local is not None:
        return _parts(local)
    try:
        return _tables(hub, name)
    except InputError as problem:
        raise InputError(
            f"no {name} under '{data_dir}': put the folder {classic}, {name}/*.parquet or {name}/train.npz and test.npz"
            f" there and name the place with --data-dir or FLATSPARSE_DATA ({problem})"
        ) from None


class _PlainUnpickler(pickle.Unpickler):
    """Reads arrays and plain values; anything else a pickle could run is refused."""

    ALLOWED = frozenset({("_codecs", "encode"), ("numpy", "ndarray"), ("numpy", "dtype")})

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return super().find_class("numpy._core.multiarray", name)
        if (module, name) in self.ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it wants to load {module}.{name}, which no image data needs")


def _cifar_batch(file: Path, key: bytes, classes: int) -> Images:
    try:
        batch = _PlainUnpickler(io.BytesIO(file.read_bytes()), encoding="bytes").load()
        pixels = np.asarray(batch[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
        labels = np.asarray(batch[key], dtype=np.int64)
    except Exception as problem:  # a damaged pickle can raise nearly anything
        raise InputError(f"'{file}' is not a whole CIFAR batch ({_brief(problem)}): fetch it again") from None
    if len(pixels) != len(labels) or len(labels) == 0 or labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"'{file}' holds {len(pixels)} images and {len(labels)} labels, not all in 0 … {classes - 1}: fetch it again"
        )
    return Images(torch.from_numpy(pixels.transpose(0, 2, 3, 1).copy()), torch.from_numpy(labels))


# -- folders ----------------------------------------------------------------------------------------------------------


@functools.cache
def _folder(folder: Path) -> DataSet:
    return _dataset(folder.resolve().name, *_parts(folder))


def _parts(folder: Path) -> tuple[Images, Images]:
    """A folder's training and test images, in whichever form they are there."""
    if (folder / "train.npz").is_file():
        return _arrays(folder / "train.npz"), _arrays(folder / "test.npz")
    if any(folder.rglob("*.parquet")) or (folder / "train").is_dir():
        return _tables(str(folder), str(folder))
    raise InputError(
        f"'{folder}' holds no data set: it needs train.npz and test.npz, parquet files named train* and test*, or images"
        " in train/CLASS/ and test/CLASS/"
    )


def _arrays(file: Path) -> Images:
    """``images`` uint8 (N, H, W, 3) and ``labels`` (N) of an ``.npz`` file."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"]
    except Exception as problem:  # numpy and zipfile raise many kinds on damage
        raise InputError(
            f"'{file}' cannot be read ({_brief(problem)}): it needs arrays 'images' and 'labels'"
        ) from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        grey = " (grey images: give them a last axis of 1)" if images.ndim == 3 else ""
        raise InputError(f"images in '{file}' are {images.dtype} {images.shape}, wanted uint8 (N, H, W, 3){grey}")
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
        raise InputError(f"labels in '{file}' are {labels.dtype} {labels.shape}, wanted integers ({len(images)},)")
    return Images(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))


# -- through the datasets library -------------------------------------------------------------------------------------


def _tables(source: str, name: str) -> tuple[Images, Images]:
    """Images and labels of parquet files, image folders or a hub id, read by the datasets library."""
    import datasets

    datasets.disable_progress_bars()
    for library in ("huggingface_hub", "datasets"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # their retries; the outcome is ours to tell
    folder = Path(source)
    once = datasets.DownloadConfig(max_retries=0)
    try:
        if not folder.is_dir():
            tables = datasets.load_dataset(source, download_config=once)
        elif parquet := sorted(folder.rglob("*.parquet")):
            parts = {p: [str(f) for f in parquet if f.name.startswith(p)] for p in ("train", "test", "validation")}
            tables = datasets.load_dataset("parquet", data_files={p: files for p, files in parts.items() if files})
        else:
            tables = datasets.load_dataset("imagefolder", data_dir=source)
    except Exception as problem:  # no network, no such dataset, a damaged file: each library has its own error
        raise InputError(f"'{name}' cannot be read: {_brief(problem)}") from None
    held = next((part for part in ("test", "validation") if part in tables), None)
    if "train" not in tables or held is None:
        raise InputError(f"'{name}' has the parts {', '.join(tables)}: it needs train, and test or validation")
    return _table(tables["train"], f"{name} (train)"), _table(tables[held], f"{name} ({held})")


def _table(table: Any, name: str) -> Images:
    import datasets

    columns = table.column_names
    image = next((c for c in ("image", "img", "images") if c in columns), None)
    label = next((c for c in ("label", "fine_label", "labels") if c in columns), None)
    if image is None or label is None:
        raise InputError(
            f"'{name}' has the columns {', '.join(columns)}: it needs image (or img) and label (or fine_label)"
        )
    raw = table.cast_column(image, datasets.Image(decode=False))
    pixels = [_decoded(row[image], f"image {index} of '{name}'") for index, row in enumerate(raw)]
    _check_alike(pixels, [row["path"] or f"image {i} of '{name}'" for i, row in enumerate(raw[image])])
    labels = np.asarray(table[label])
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"labels of '{name}' are {labels.dtype}: give whole numbers from 0")
    return Images(torch.from_numpy(np.stack(pixels)), torch.from_numpy(labels.astype(np.int64)))


def _decoded(row: dict[str, Any], where: str) -> np.ndarray:
    """One image as uint8 (H, W, 1 or 3)."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(row["bytes"]) if row["bytes"] else row["path"]) as image:
            pixels = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    except Exception as problem:  # Pillow raises many kinds on damage
        raise InputError(
            f"{row['path'] or where} is not a whole image ({_brief(problem)}): replace it or take it out"
        ) from None
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _check_alike(pixels: Sequence[np.ndarray], names: Sequence[str]) -> None:
    for image, name in zip(pixels, names, strict=True):
        if image.shape != pixels[0].shape:
            raise InputError(
                f"{name} is {_shape(image)} and {names[0]} is {_shape(pixels[0])}: make all images of one size and kind"
            )


def _shape(image: np.ndarray) -> str:
    height, width, channels = image.shape
    return f"{height}x{width} {'grey' if channels == 1 else 'RGB'}"


def _brief(problem: Exception) -> str:
    lines = str(problem).strip().splitlines()
    return (lines[0] if lines else type(problem).__name__)[:150]
