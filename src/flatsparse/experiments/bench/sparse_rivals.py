"""Other packages with sparse layers that train on CPUs, where they are installed: imported late, and only by name."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flatsparse.sparse.layers import prunable

NOT_INSTALLED = "not installed"


class Missing(Exception):
    """A rival has no form of a model here; the message says why."""


@dataclass(frozen=True)
class Rival:
    """Another package.

    Attributes:
        install: how to get it.
        convert: from a model with zeros, its masked layers by name, the inputs and whether it is a whole network, makes a copy
            that runs on the package.
    """

    install: str
    convert: Callable[[Any, nn.Module, Mapping[str, nn.Module], Tensor, bool], nn.Module]


def converted(name: str, model: nn.Module, masks: Mapping[str, Tensor], inputs: Tensor, *, whole: bool) -> nn.Module:
    """Return a copy of a model whose masked layers are a rival's.

    Args:
        name: in ``RIVALS``.
        model: with zeros outside the masks.
        masks: by parameter name.
        inputs: that it will be run on.
        whole: whether it is a network, of which a rival may leave layers dense, and not a layer.

    Raises: Missing where the rival is not installed, or has no such layers.
    """
    rival = RIVALS[name]
    with _threads_for_openmp(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            package = importlib.import_module(name)
        except ImportError:
            raise Missing(f"{NOT_INSTALLED}: {rival.install}") from None
        owners = {n: module for n, (_, module) in prunable(model).items() if n in masks}
        plain = copy.deepcopy(model)
        named = {n.removesuffix("weight").rstrip("."): type(module) for n, module in owners.items()}
        return rival.convert(package, plain, {n: plain.get_submodule(n) for n in named}, inputs, whole)


@contextlib.contextmanager
def _threads_for_openmp() -> Iterator[None]:
    """A context in which a library that brings an OpenMP of its own, and reads its threads when loaded, takes torch's number."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _replaced(model: nn.Module, layers: Mapping[str, nn.Module], make: Callable[[Any], nn.Module]) -> nn.Module:
    for name, layer in layers.items():
        if not name:
            return make(layer)
        model.set_submodule(name, make(layer))
    return model


def _sparselab(
    package: Any, model: nn.Module, layers: Mapping[str, nn.Module], inputs: Tensor, whole: bool
) -> nn.Module:
    if any(type(layer) is not nn.Linear for layer in layers.values()):
        raise Missing("it has linear layers only")
    # It keeps transposes by the id of a matrix, which another may have by now.
    importlib.import_module("sparselab.ops")._clear_transpose_cache()

    def make(layer: nn.Linear) -> nn.Module:
        ours = package.SparseLinear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        # A mask cannot be given, so its storage is made anew from our weights, as its own reset does.
        ours._csr = package.PaddedCSR.from_dense(layer.weight.detach(), padding_ratio=ours.padding_ratio)
        ours._values = nn.Parameter(torch.as_tensor(ours._csr.values))
        if layer.bias is not None:
            ours.bias = nn.Parameter(layer.bias.detach().clone())
        return ours  # type: ignore[no-any-return]

    return _replaced(model, layers, make)


def _sparseprop(
    package: Any, model: nn.Module, layers: Mapping[str, nn.Module], inputs: Tensor, whole: bool
) -> nn.Module:
    modules, utils = (importlib.import_module(f"sparseprop.{name}") for name in ("modules", "utils"))
    if whole:  # by its own choice, layer by layer, of what is faster; under 80 % sparse it leaves all dense
        with torch.enable_grad():
            swapped: nn.Module = utils.swap_modules_with_sparse(model, tuple(inputs.shape))
        if not any(type(module).__module__.startswith("sparseprop") for module in swapped.modules()):
            raise Missing("it left every layer dense")
        return swapped

    def make(layer: nn.Module) -> nn.Module:
        if isinstance(layer, nn.Linear):
            return modules.linear.SparseLinear.from_dense(layer)  # type: ignore[no-any-return]
        return modules.sparsify_conv2d_auto(layer, tuple(inputs.shape))  # type: ignore[no-any-return]

    return _replaced(model, layers, make)


RIVALS = {
    "sparselab": Rival("pip install sparselab", _sparselab),
    "sparseprop": Rival("build it from github.com/IST-DASLab/sparseprop", _sparseprop),
}
