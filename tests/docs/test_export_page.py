"""What docs/export.md and docs/run-folder.md say of files is what the files are."""

from pathlib import Path

import numpy as np
import pytest

import flatsparse as fs
from flatsparse.export import save_csr, to_csr
from flatsparse.export.dense import with_zeros
from tests.docs.blocks import python
from tests.export.nets import net


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("name", "groups"), [("stem", 1), ("depthwise", 8), ("grouped", 2), ("ring", 1), ("shared", 1)]
)
def test_numpy_reads_every_layer_of_a_csr_file(name, groups):
    model, masks, _ = net("awkward")
    save_csr(Path("csr.safetensors"), to_csr(model, masks))
    found = {}
    exec(python("docs/export.md")[3], found)
    weight = with_zeros(model, masks).get_submodule(name).weight.detach().numpy()
    assert np.array_equal(found["dense_weight"](name, weight.shape, groups), weight)


@pytest.mark.usefixtures("here")
def test_numpy_reads_a_mask_file():
    _, masks, _ = net("awkward")
    Path("run").mkdir()
    fs.save_masks("run/masks.safetensors", masks)
    found = {}
    exec(python("docs/run-folder.md")[-1], found)
    assert list(found["masks"]) == list(masks)
    assert all(np.array_equal(found["masks"][n], masks[n].numpy()) for n in masks)
