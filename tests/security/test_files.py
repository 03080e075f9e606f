"""Files that would execute code are refused in one line by every reader, and nothing is executed."""

from __future__ import annotations

import contextlib
import functools

import pytest
import torch
from torch import nn

import flatsparse as fs
from flatsparse.common.checkpoints import load_state, save_state
from flatsparse.common.errors import InputError
from flatsparse.common.json_files import read_json, read_json_lines
from flatsparse.common.masks_file import load_masks
from flatsparse.common.tensor_files import load_tensors
from tests.security import evil

CONTENTS = {
    "a pickle": evil.pickled,
    "a pickle of protocol 0": functools.partial(evil.pickled, protocol=0),
    "a pickle of protocol 5": functools.partial(evil.pickled, protocol=5),
    "torch's archive": evil.zipped,
    "torch's old form": evil.legacy,
    "an array of objects": evil.array,
    "arrays of objects": evil.arrays,
    "compressed arrays of objects": functools.partial(evil.arrays, compressed=True),
    "a CIFAR batch": evil.batch,
    "code in a pickle": functools.partial(evil.named, protocol=0),
    "a dotted name in a pickle": functools.partial(evil.named, protocol=4),
}


def linear():
    return nn.Linear(2, 2)


def classic(folder, content, names):
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(content)
    return folder.parent


def read_data(name, place, **files):
    from flatsparse.experiments.data.sources import load

    for file, content in files.items():
        (place / file.replace("_", ".")).write_bytes(content)
    load(name, place)


def read_cifar(place, content, *, hundred=False):
    from flatsparse.experiments.data.sources import load

    names = ("train", "test") if hundred else (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
    place = classic(place / ("cifar-100-python" if hundred else "cifar-10-batches-py"), content, names)
    load("cifar100" if hundred else "cifar10", place)


def read_npz(place, content, mapped=False):
    from flatsparse.experiments.data.image_arrays import read_arrays

    (place / "train.npz").write_bytes(content)
    read_arrays(place / "train.npz", mapped=mapped)


def read_npy(place, content):
    from flatsparse.experiments.data.corrupted import read_corrupted

    for name in ("gaussian_noise", "labels"):
        (place / f"{name}.npy").write_bytes(content)
    read_corrupted(place, 2)


def read_image(place, content):
    from flatsparse.experiments.data.sources import load

    for part in ("train", "test"):
        for kind in ("a", "b"):
            (place / "set" / part / kind).mkdir(parents=True)
            (place / "set" / part / kind / "1.png").write_bytes(content)
    load(str(place / "set"))


def written(name, read):
    """A reader of one file, which is called so."""

    def reader(place, content):
        (place / name).write_bytes(content)
        read(place / name)

    return reader


def read_onnx(file):
    pytest.importorskip("onnxruntime")
    fs.export.load_onnx(file)


def folder_of_hub(place, content):
    (place / "net").mkdir()
    (place / "net" / "model.safetensors").write_bytes(content)
    fs.masks_from(place / "net")


LIBRARY = {
    "load_state": written("checkpoint.pt", load_state),
    "masks_from .pt": written("net.pt", fs.masks_from),
    "masks_from .pth": written("net.pth", fs.masks_from),
    "masks_from .bin": written("pytorch_model.bin", fs.masks_from),
    "masks_from .safetensors": written("net.safetensors", fs.masks_from),
    "masks_from a folder": folder_of_hub,
    "load_tensors": written("x.safetensors", load_tensors),
    "load_masks": written("masks.safetensors", load_masks),
    "load_csr": written("csr.safetensors", lambda file: fs.export.load_csr(file, linear())),
    "load_small": written("small.safetensors", lambda file: fs.export.load_small(file, linear())),
    "apply_delta": written("delta.safetensors", lambda file: fs.export.apply_delta(file, linear())),
    "load_onnx": written("model.onnx", read_onnx),
    "read_json": written("config.json", read_json),
    "read_json_lines": written("metrics.jsonl", read_json_lines),
}
LAB = {
    "CIFAR-10": read_cifar,
    "CIFAR-100": functools.partial(read_cifar, hundred=True),
    "arrays": read_npz,
    "mapped arrays": functools.partial(read_npz, mapped=True),
    "corrupted arrays": read_npy,
    "images": read_image,
    "a folder of arrays": lambda place, content: read_data(str(place), place, train_npz=content, test_npz=content),
}


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """What must not appear. That torch is told to execute what it loads changes nothing."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    return tmp_path / "ran"


@pytest.mark.parametrize("reader", [*LIBRARY, *LAB])
@pytest.mark.parametrize("content", CONTENTS)
def test_nothing_is_executed_and_one_line_says_why(reader, content, tmp_path, marker):
    if reader in LAB:
        pytest.importorskip("PIL")
    (tmp_path / "place").mkdir()
    with pytest.raises(InputError, match=r"\A[^\n]+\Z"):
        (LIBRARY | LAB)[reader](tmp_path / "place", CONTENTS[content](marker))
    assert not marker.exists()


def test_these_files_do_execute_where_a_reader_lets_them(tmp_path):
    """Else the tests above would prove nothing."""
    import io
    import pickle

    import numpy as np

    def as_npy(content):
        np.load(io.BytesIO(content), allow_pickle=True)

    def as_npz(content):
        np.load(io.BytesIO(content), allow_pickle=True)["labels"]

    def as_torch(content):
        torch.load(io.BytesIO(content), weights_only=False)

    loads = {
        "an array of objects": as_npy,
        "arrays of objects": as_npz,
        "compressed arrays of objects": as_npz,
        "torch's archive": as_torch,
        "torch's old form": as_torch,
    }
    for number, (name, content) in enumerate(CONTENTS.items()):
        marker = tmp_path / str(number)
        if name == "a dotted name in a pickle":
            assert isinstance(pickle.loads(content(marker)), list)  # subclasses of object, from which all is reached
            continue
        with contextlib.suppress(FileExistsError):  # made by the first of several
            loads.get(name, pickle.loads)(content(marker))
        assert marker.is_dir(), name


def test_a_checkpoint_with_a_right_checksum_is_refused_too(tmp_path, marker):
    save_state(tmp_path / "c.pt", {"x": evil.Evil(marker)})
    with pytest.raises(InputError, match=r"\A[^\n]*more than tensors and plain values[^\n]*\Z"):
        load_state(tmp_path / "c.pt")
    assert not marker.exists()


@pytest.mark.parametrize("column", ["image", "translation"])
def test_a_type_of_a_table_that_arrow_once_unpickled_is_not(column, tmp_path, marker):
    pytest.importorskip("pyarrow")
    from flatsparse.experiments.data.sentences import _of_tables
    from flatsparse.experiments.data.sources import load

    (tmp_path / "set").mkdir()
    for part in ("train", "test"):
        evil.table(tmp_path / "set" / f"{part}-00000-of-00001.parquet", marker, column)
    sentences = functools.partial(_of_tables, languages=("en", "de"))
    read, of = (
        (load, str(tmp_path / "set")) if column == "image" else (sentences, list((tmp_path / "set").glob("train*")))
    )
    with pytest.raises(InputError, match=r"\A[^\n]+\Z"):
        read(of)
    assert not marker.exists()


def test_a_path_in_a_table_is_not_opened(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from PIL import Image
    from pyarrow import parquet

    from flatsparse.experiments.data.sources import load

    Image.new("RGB", (8, 8)).save(tmp_path / "private.png")
    (tmp_path / "set").mkdir()
    named = [{"bytes": None, "path": str(tmp_path / "private.png")}] * 2
    for part in ("train", "test"):
        table = pyarrow.table({"image": named, "label": [0, 1]})
        parquet.write_table(table, tmp_path / "set" / f"{part}-00000-of-00001.parquet")
    with pytest.raises(InputError, match=r"\A[^\n]+\Z"):
        load(str(tmp_path / "set"))


def test_an_image_of_a_kind_that_is_a_program_is_not_opened(tmp_path, monkeypatch):
    """PostScript, for which Pillow calls Ghostscript, under the name of a picture."""
    pytest.importorskip("PIL")
    from PIL import EpsImagePlugin

    from flatsparse.experiments.data.pixels import FORMATS

    assert not {"EPS", "PSD", "WMF", "FITS"} & {*FORMATS}
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("it is executed"))
    header = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(ran) (w) file\nshowpage\n%%EOF\n"
    with pytest.raises(InputError, match=r"\A[^\n]*is not a whole image[^\n]*\Z"):
        read_image(tmp_path, header)


def test_a_data_set_of_the_hub_is_read_without_its_script(tmp_path, monkeypatch):
    """``datasets`` has executed none since its version 4; before, a script beside the data was."""
    from importlib.metadata import version

    pytest.importorskip("datasets")
    assert int(version("datasets").partition(".")[0]) >= 4
    from flatsparse.experiments.data.sources import load

    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "owner" / "name" / "name.py").write_text("import os; os.mkdir('../../ran')\n")
    with pytest.raises(InputError, match=r"\A[^\n]+\Z"):
        load("owner/name")
    assert not (tmp_path / "ran").exists()
