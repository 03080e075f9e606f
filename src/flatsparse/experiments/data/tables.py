"""Tables of images and labels: parquet files, and data sets of the hub."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from flatsparse.common.errors import InputError
from flatsparse.common.files import check_is_file, read
from flatsparse.experiments.data.parts import Part, part_of
from flatsparse.experiments.data.pixels import brief, gathered

IMAGE = ("image", "img", "images")
LABEL = ("label", "labels", "fine_label", "class")
ROWS = 256  # read at a time


def parquet_part(name: str, files: Sequence[Path], *, training: bool) -> Part:
    """Return the part whose rows are those of parquet files, one file after another.

    Images are bytes, alone or beside a path, which is not opened: it may lead anywhere.

    Args:
        name: for messages.
        files: at least one.
        training: the part must have labels; those of others may be withheld.

    Raises: InputError for a file that is damaged or has not the columns.
    """
    labels, names = table_labels(name, files, training=training)
    stack = functools.partial(gathered, _contents(_of_files(files, name), name), len(labels), name)
    return Part(name, labels, stack, names)


def table_labels(name: str, files: Sequence[Path], *, training: bool) -> tuple[list[Any], tuple[str, ...] | None]:
    """Return the labels of parquet files, one a row, and the names of numbered classes; see ``parquet_part``."""
    labels: list[Any] = []
    names = None
    for file in files:
        with opened(file) as table:
            label = columns(table.schema_arrow.names, name, training)[1]
            labels += [None] * table.metadata.num_rows if label is None else table.read([label]).column(0).to_pylist()
            names = names or _class_names(table.schema_arrow.metadata, label)
    return labels, names


def hub_parts(source: str, name: str) -> dict[str, Part]:
    """Return the parts of a data set of the hub, read by the ``datasets`` library.

    Raises: InputError when it cannot be had, or has not the columns.
    """
    import datasets
    import huggingface_hub

    datasets.disable_progress_bars()
    for library in ("huggingface_hub", "datasets"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # their retries; we report the outcome
    try:
        tables = datasets.load_dataset(source, download_config=datasets.DownloadConfig(max_retries=0))
    except Exception as problem:  # no network, no such dataset, a damaged file: each library has its own error
        raise InputError(f"'{name}' cannot be read: {brief(problem)}") from None
    copies = [Path(datasets.config.HF_DATASETS_CACHE), Path(huggingface_hub.constants.HF_HUB_CACHE)]
    parts: dict[str, Part] = {}
    for word, table in tables.items():
        if (part := part_of(word)) is None:
            continue
        if part in parts:
            raise InputError(f"'{name}' has its {part} part twice: as {word} too")
        title = f"{name} ({word})"
        image, label = columns(table.column_names, title, part == "train")
        plain = table.select_columns([image]).cast_column(image, datasets.Image(decode=False)).with_format("arrow")
        pieces = (piece.column(0) for piece in plain.iter(ROWS))
        labels = [None] * len(table) if label is None else table.data.column(label).to_pylist()
        names = getattr(table.features.get(label), "names", None)
        stack = functools.partial(gathered, _contents(pieces, title, copies), len(labels), title)
        parts[part] = Part(title, labels, stack, tuple(names) if names else None)
    return parts


@contextlib.contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A context with an open parquet file. Raises InputError when it cannot be read."""
    import pyarrow.parquet

    check_is_file(file)
    try:
        with file.open("rb") as stream:  # and not by its path, which Arrow may read more into
            yield pyarrow.parquet.ParquetFile(stream)
    except InputError:
        raise
    except Exception as problem:  # the system's, and Arrow's own
        raise InputError(f"'{file}' cannot be read ({brief(problem)}): replace it or take it out") from None


def columns(names: Sequence[str], name: str, labelled: bool) -> tuple[str, str | None]:
    """Return the names of the columns of images and labels. Raises InputError where one that is needed is missing."""
    image, label = (next((c for c in known if c in names), None) for known in (IMAGE, LABEL))
    if image is None or (labelled and label is None):
        raise InputError(
            f"'{name}' has the columns {', '.join(names)}: it needs image (or {' or '.join(IMAGE[1:])}) and label"
            f" (or {' or '.join(LABEL[1:])})"
        )
    return image, label


def _class_names(metadata: dict[bytes, bytes] | None, label: str | None) -> tuple[str, ...] | None:
    """Return the names of numbered classes, as the ``datasets`` library notes them in files that it writes."""
    try:
        return tuple(json.loads((metadata or {})[b"huggingface"])["info"]["features"][label]["names"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _of_files(files: Sequence[Path], name: str) -> Iterator[Any]:
    """Yield the images of parquet files, as Arrow's arrays."""
    for file in files:
        with opened(file) as table:
            image, _ = columns(table.schema_arrow.names, name, labelled=False)
            for batch in table.iter_batches(ROWS, columns=[image]):
                yield batch.column(0)


def _contents(pieces: Iterable[Any], name: str, within: Sequence[Path] = ()) -> Iterator[tuple[str, bytes]]:
    """Yield each image's name, for messages, and its content.

    Args:
        pieces: Arrow's arrays of bytes, or of bytes and paths.
        name: of the part.
        within: folders whose files may be opened by their paths.
    """
    number = 0
    for piece in pieces:
        for value in piece.to_pylist():
            yield entry_content(value, f"image {number} of '{name}'", within)
            number += 1


def entry_content(value: Any, where: str, within: Sequence[Path] = ()) -> tuple[str, bytes]:
    """Return the name of a table's image, for messages, and its content.

    Args:
        value: the table's entry.
        where: which it is.
        within: folders whose files may be opened by their paths.

    Raises: InputError for an entry that is no image.
    """
    path = None
    if isinstance(value, dict):
        value, path = value.get("bytes"), value.get("path")
    if isinstance(value, bytes):
        return where if path is None else f"{where} ({_shown(path)})", value
    if value is not None:
        raise InputError(f"{where} is of type {type(value).__name__}: give the bytes of an image file")
    if path is None:
        raise InputError(f"{where} is null: take its row out")
    if isinstance(path, str) and any(_leads_into(path, folder) for folder in within):
        return f"{where} ({_shown(path)})", read(Path(path))
    raise InputError(f"{where} has no bytes, and its path {_shown(path)} is not opened: put the images into the table")


def _shown(path: Any) -> str:
    """Return the start of a table's entry, on one line."""
    return repr(path)[:150]


def _leads_into(path: str, folder: Path) -> bool:
    try:
        return Path(path).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # too long, with a zero byte, in a circle of links
        return False
