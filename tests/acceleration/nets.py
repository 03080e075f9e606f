"""What the tests of acceleration share: kernels or a reason to skip, layers that are always sparse, and a net."""

import pytest
import torch
from torch import nn

from flatsparse.acceleration import kernels, layers, products
from flatsparse.common.errors import InputError
from tests.helpers import tiny_net


@pytest.fixture
def compiled():
    """The kernels, with the best instruction set in use again afterwards; skips where there is no compiler."""
    try:
        kernels.library()
    except InputError as problem:
        pytest.skip(str(problem))
    yield kernels
    kernels.use(None)


@pytest.fixture
def always_sparse(monkeypatch):
    """Layers are sparse however small or dense they are. Returns the kinds that were asked for."""
    asked = []
    monkeypatch.setattr(layers, "speedup", lambda kind: (asked.append(kind), 2.0)[-1])
    monkeypatch.setattr(layers, "DENSEST", 1.0)
    return asked


@pytest.fixture
def without_compiler(monkeypatch, tmp_path):
    """A machine without a C compiler, and without what it built before."""
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for function in (kernels.library, products.is_compiled):
        function.cache_clear()
    yield
    for function in (kernels.library, products.is_compiled):
        function.cache_clear()


def sets():
    """The instruction sets of this processor."""
    try:
        kernels.library()
    except InputError:
        return []
    best = kernels.use(None)
    return list(kernels.SETS[: kernels.SETS.index(best) + 1])


def net(seed=0):
    """Convolutions and three linear layers on 8x8 images."""
    torch.manual_seed(seed)
    body = tiny_net(seed)
    return nn.Sequential(
        *body[:-1], nn.Linear(32, 37), nn.ReLU(), nn.Linear(37, 21, bias=False), nn.ReLU(), nn.Linear(21, 5)
    )
