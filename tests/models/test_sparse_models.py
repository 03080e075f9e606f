"""Every kind of network that is not a plain convolutional one, made sparse and trained with S²-SAM."""

import pytest
import torch
import torch.nn.functional as F

import flatsparse as fs
from flatsparse.sparse.layers import by_default, prunable
from tests.helpers import Joined

MODELS = {
    "efficientnet_b0": (lambda: fs.models.efficientnet_b0(10), lambda: torch.randn(4, 3, 32, 32)),
    "vit_tiny_32": (fs.models.vit_tiny_32, lambda: torch.randn(4, 3, 32, 32)),
    "gpt2_tiny": (lambda: fs.models.gpt2_tiny(40, 8), lambda: torch.randint(40, (4, 8))),
    "transformer_tiny": (lambda: Joined(fs.models.transformer_tiny(40), 7), lambda: torch.randint(1, 40, (4, 13))),
}
METHODS = {
    "static": {},
    "snip": {"scores": True},
    "grasp": {"scores": True, "per_class": None},
    "wanda": {"scores": True},
    "rigl": {"every": 1},
    "mest": {"every": 1},
}
every = pytest.mark.parametrize("name", MODELS)


def loss(logits, targets):
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


@every
@pytest.mark.parametrize("method", METHODS)
def test_it_trains_sparse_with_s2sam(name, method):
    torch.manual_seed(0)
    make, draw = MODELS[name]
    model, options = make(), dict(METHODS[method])
    targets = torch.arange(model(draw())[..., 0].numel()).view(4, -1).squeeze(1) % 10
    optimizer = fs.S2SAM(torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), rho=0.05)
    if options.pop("scores", False):
        options |= {"loss_fn": loss, "batches": [(draw(), targets)]}
    training = fs.sparsify(model, optimizer, method, sparsity=0.8, steps=10, **options)
    before = {n: mask.clone() for n, mask in training.masks.items()}
    for _ in range(3):
        loss(model(draw()), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert training.sparsity == pytest.approx(0.8, abs=1e-3)
    assert all(p.isfinite().all() for p in model.parameters())
    moved = any(not torch.equal(mask, before[n]) for n, mask in training.masks.items())
    assert moved == (method in ("rigl", "mest"))


@every
@pytest.mark.parametrize("method", ["chex", "chase"])
def test_channels_go_where_they_can(name, method):
    torch.manual_seed(0)
    make, draw = MODELS[name]
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    options = {"sparsity": 0.5} if method == "chase" else {}
    training = fs.sparsify(model, optimizer, method, steps=4, every=1, until=2, channels=0.25, **options)
    for _ in range(4):
        model(draw()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    small = fs.shrink(model, training.masks)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    inputs = draw()
    assert torch.allclose(small.eval()(inputs), model.eval()(inputs), rtol=1e-3, atol=1e-4)


@every
def test_embeddings_and_what_is_tied_to_them_stay_dense(name):
    with torch.device("meta"):
        model = MODELS[name][0]()
    dense = {n for n, (_, module) in prunable(model).items() if not by_default(n, module)}
    wanted = {
        "vit_tiny_32": {"token", "positions"},
        "gpt2_tiny": {"tokens.weight", "positions.weight"},
        "transformer_tiny": {"model.tokens.weight"},
    }
    assert dense == wanted.get(name, set())
