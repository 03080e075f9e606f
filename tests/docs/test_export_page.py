"""What docs/export.md and docs/run-folder.md say of files is what the files are."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import flatsparse as fs
from flatsparse.export import save_csr, to_csr
from flatsparse.export.dense import with_zeros
from tests.export.nets import net

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("here")
def test_the_page_runs_from_top_to_bottom():
    found = {}
    write, keep, read = blocks("export.md")
    exec(write, found)
    before = found["training"]
    before.detach()
    exec(keep, found)
    exec(read, found)
    assert {n: m.tolist() for n, m in found["training"].masks.items()} == {
        n: m.tolist() for n, m in before.masks.items() if not m.all()
    }
    named = dict(found["model"].named_parameters())
    assert np.array_equal(found["dense_weight"]("3", named["3.weight"].shape), named["3.weight"].detach().numpy())
    inputs = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.allclose(found["sparse"](inputs), found["model"].eval()(inputs), atol=1e-5)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("name", "groups"), [("stem", 1), ("depthwise", 8), ("grouped", 2), ("ring", 1), ("shared", 1)]
)
def test_numpy_reads_every_layer_of_a_csr_file(name, groups):
    model, masks, _ = net("awkward")
    save_csr(Path("csr.safetensors"), to_csr(model, masks))
    found = {}
    exec(blocks("export.md")[2], found)
    weight = with_zeros(model, masks).get_submodule(name).weight.detach().numpy()
    assert np.array_equal(found["dense_weight"](name, weight.shape, groups), weight)


@pytest.mark.usefixtures("here")
def test_numpy_reads_a_mask_file():
    _, masks, _ = net("awkward")
    Path("run").mkdir()
    fs.save_masks("run/masks.safetensors", masks)
    found = {}
    exec(next(block for block in blocks("run-folder.md") if "unpackbits" in block), found)
    assert list(found["masks"]) == list(masks)
    assert all(np.array_equal(found["masks"][n], masks[n].numpy()) for n in masks)
