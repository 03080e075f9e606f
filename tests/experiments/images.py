"""Small sets of images for tests, as folders and as tables."""

import io
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def level(name):
    """A grey that stands for a class."""
    return zlib.crc32(name.encode(errors="surrogateescape")) % 60 * 4


def write_class(folder, count=3, *, shade=None, ending=".png"):
    """A class's folder, whose images are nearly of one grey, each another."""
    folder.mkdir(parents=True)
    for place in range(count):
        pixels = np.full((8, 8, 3), (level(folder.name) if shade is None else shade) + place, np.uint8)
        Image.fromarray(pixels).save(folder / f"{place}{ending}")


def write_parts(folder, parts):
    """``{"train": ("cat", "dog"), …}`` as folders; returns the place as the command line has it."""
    for part, classes in parts.items():
        for name in classes:
            write_class(folder / part / name)
    return str(folder)


def png(shade=0, **options):
    stream = io.BytesIO()
    Image.new("L", (8, 8), shade).save(stream, "PNG", **options)
    return stream.getvalue()


def write_table(file, labels, *, image="image", label="label", rows=None, metadata=None):
    """A parquet file with an image a label."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = rows or [{"bytes": png(place % 256), "path": None} for place in range(len(labels))]
    table = pa.table({image: rows, label: labels})
    pq.write_table(table.replace_schema_metadata(metadata) if metadata else table, file)
