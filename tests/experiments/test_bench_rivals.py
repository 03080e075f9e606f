"""Rivals of accelerated layers: stand-ins with their interfaces, and the packages themselves where they are installed."""

import importlib
import os
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flatsparse.experiments.bench.sparse_rivals import RIVALS, Missing, converted

INPUTS = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def masked():
    """A network with zeros, and its masks."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8, bias=False))
    masks = {name: torch.rand(p.shape) < 0.1 for name, p in model.named_parameters() if p.ndim == 2}
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    return model, masks


def module(name, **contents):
    made = types.ModuleType(name)
    made.__dict__.update(contents)
    return made


class StandInCSR:
    """A matrix that keeps its values where torch can alias them."""

    def __init__(self, matrix):
        self.where, self.shape = matrix.nonzero(as_tuple=True), matrix.shape
        self.values = matrix[self.where].numpy()

    @staticmethod
    def from_dense(matrix, *, padding_ratio):
        assert 0 <= padding_ratio < 1
        return StandInCSR(matrix)


class StandInLinear(nn.Module):
    padding_ratio = 0.2

    def __init__(self, inputs, outputs, bias=True):
        super().__init__()
        self._csr, self._values = None, None
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x):
        dense = torch.zeros(self._csr.shape).index_put(self._csr.where, self._values)
        return F.linear(x, dense, self.bias)


@pytest.fixture
def sparselab(monkeypatch):
    cleared, threads = [], []

    def find(name):
        threads.append(os.environ.get("OMP_NUM_THREADS"))
        return ordinary(name)

    ordinary = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", find)
    package = module("sparselab", SparseLinear=StandInLinear, PaddedCSR=StandInCSR)
    monkeypatch.setitem(sys.modules, "sparselab", package)
    ops = module("sparselab.ops", _clear_transpose_cache=lambda: cleared.append(1))
    monkeypatch.setitem(sys.modules, "sparselab.ops", ops)
    return cleared, threads


def test_a_network_on_sparselab_has_our_weights(masked, sparselab, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    model, masks = masked
    cleared, threads = sparselab
    theirs = converted("sparselab", model, masks, INPUTS, whole=True)
    torch.testing.assert_close(theirs(INPUTS), model(INPUTS))
    assert [type(layer) for layer in theirs] == [StandInLinear, nn.ReLU, StandInLinear]
    assert [type(layer) for layer in model] == [nn.Linear, nn.ReLU, nn.Linear]  # its own is untouched
    assert sum(len(layer._values) for layer in (theirs[0], theirs[2])) == sum(int(m.sum()) for m in masks.values())
    assert cleared
    assert threads[0] == str(torch.get_num_threads())
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_a_single_layer_is_converted_too(masked, sparselab):
    layer = masked[0][0]
    theirs = converted("sparselab", layer, {"weight": masked[1]["0.weight"]}, INPUTS, whole=False)
    torch.testing.assert_close(theirs(INPUTS), layer(INPUTS))


def test_sparselab_has_no_convolutions(sparselab):
    conv = nn.Conv2d(3, 4, 3)
    with pytest.raises(Missing, match="linear layers only"):
        converted(
            "sparselab", conv, {"weight": torch.ones_like(conv.weight).bool()}, torch.zeros(2, 3, 8, 8), whole=False
        )


class StandInSparse(nn.Module):
    __module__ = "sparseprop.modules"

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    @staticmethod
    def from_dense(layer):
        return StandInSparse(layer)

    def forward(self, x):
        return self.layer(x)


@pytest.fixture
def sparseprop(monkeypatch):
    def swap(model, shape):
        print("chosen")  # as theirs does
        model[0] = StandInSparse(model[0]) if shape[0] > 8 else model[0]
        return model

    modules = module(
        "sparseprop.modules",
        linear=module("linear", SparseLinear=StandInSparse),
        sparsify_conv2d_auto=lambda layer, shape: StandInSparse(layer),
    )
    monkeypatch.setitem(sys.modules, "sparseprop", module("sparseprop"))
    monkeypatch.setitem(sys.modules, "sparseprop.modules", modules)
    monkeypatch.setitem(sys.modules, "sparseprop.utils", module("sparseprop.utils", swap_modules_with_sparse=swap))


def test_sparseprop_chooses_in_a_network_and_not_in_a_layer(masked, sparseprop, capsys):
    model, masks = masked
    whole = converted("sparseprop", model, masks, INPUTS, whole=True)
    assert [type(layer) for layer in whole] == [StandInSparse, nn.ReLU, nn.Linear]
    every = converted("sparseprop", model, masks, INPUTS, whole=False)
    assert [type(layer) for layer in every] == [StandInSparse, nn.ReLU, StandInSparse]
    assert capsys.readouterr().out == ""
    with pytest.raises(Missing, match="every layer dense"):
        converted("sparseprop", model, masks, INPUTS[:8], whole=True)
    conv = nn.Conv2d(3, 4, 3)
    mask = {"weight": torch.ones_like(conv.weight).bool()}
    assert type(converted("sparseprop", conv, mask, torch.zeros(2, 3, 8, 8), whole=False)) is StandInSparse


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_that_is_not_installed_is_missing_with_a_way_to_get_it(masked, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(Missing, match=f"^not installed: {RIVALS[name].install}$"):
        converted(name, *masked, INPUTS, whole=True)


@pytest.mark.parametrize("name", RIVALS)
def test_an_installed_rival_computes_what_our_model_does_forward_and_backward(masked, name):
    pytest.importorskip(name)
    model, masks = masked
    theirs = converted(name, model, masks, INPUTS, whole=False)
    ours, other = (INPUTS.clone().requires_grad_() for _ in "ab")
    wanted, outputs = model(ours), theirs(other)
    torch.testing.assert_close(outputs, wanted, rtol=1e-4, atol=1e-5)
    wanted.square().sum().backward()
    outputs.square().sum().backward()
    torch.testing.assert_close(other.grad, ours.grad, rtol=1e-4, atol=1e-5)
