"""Sparse rows in place of layers that others look into: their weight, type, device and sizes, by name."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from flatsparse.export import to_csr, with_zeros
from flatsparse.export.csr import SparseRows
from flatsparse.sparse.layers import PRUNABLE, prunable


def random_masks(model):
    chosen = {name: p for name, (p, owner) in prunable(model).items() if isinstance(owner, PRUNABLE)}
    return {name: torch.rand(p.shape) < 0.4 for name, p in chosen.items()}


def encoder_layer(**options):
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **options)


class Looks(nn.Module):
    """Reads its layers as Hugging Face's and others' code does, and multiplies by one's weight itself."""

    def __init__(self):
        super().__init__()
        self.conv, self.first, self.last = nn.Conv2d(4, 6, 3, groups=2), nn.Linear(6, 8), nn.Linear(8, 5)
        self.tied = nn.Embedding(5, 8)
        self.tied.weight = self.last.weight

    def forward(self, x):
        assert next(self.parameters()).dtype == next(self.first.parameters()).dtype == x.dtype
        x = x.to(self.conv.weight.device, self.conv.weight.dtype).view(-1, self.conv.in_channels, 5, 5)
        x = self.first(self.conv(x).amax((2, 3)) / self.first.in_features**0.5)
        x = F.linear(x, self.last.weight, self.last.bias) / self.last.out_features + self.last(x)
        return x + x @ self.tied.weight @ self.first.weight[:, : self.conv.weight.shape[1]].repeat(1, 3)[:, :5]


PADDED = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
MODELS = {
    "encoder": (lambda: nn.TransformerEncoder(encoder_layer(), 2), 1, {"src_key_padding_mask": PADDED}),
    "encoder, gelu": (lambda: nn.TransformerEncoder(encoder_layer(activation="gelu"), 1), 1, {}),
    "encoder, norm first": (
        lambda: nn.TransformerEncoder(encoder_layer(norm_first=True), 1, enable_nested_tensor=False),
        1,
        {"src_key_padding_mask": PADDED},
    ),
    "encoder, padded on the left": (
        lambda: nn.TransformerEncoder(encoder_layer(), 1),
        1,
        {"src_key_padding_mask": PADDED.flip(1)},
    ),
    "encoder layer": (encoder_layer, 1, {"src_key_padding_mask": PADDED}),
    "decoder": (lambda: nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), 2, {}),
    "both": (
        lambda: nn.Transformer(8, 2, 1, 1, 16, batch_first=True),
        2,
        {"src_key_padding_mask": PADDED, "memory_key_padding_mask": PADDED},
    ),
    "attention": (lambda: nn.MultiheadAttention(8, 2, batch_first=True), 3, {"key_padding_mask": PADDED}),
    "one's own": (Looks, 1, {}),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_sparse_model_says_what_the_masked_one_says(name, gradients):
    torch.manual_seed(0)
    make, count, options = MODELS[name]
    model = make().eval()
    masks = random_masks(model)
    inputs = [torch.randn(2, 4, 5, 5) if name == "one's own" else torch.randn(2, 5, 8) for _ in range(count)]
    sparse = to_csr(model, masks)
    written = io.BytesIO()
    torch.save(sparse, written)
    written.seek(0)
    with torch.set_grad_enabled(gradients):
        wanted = with_zeros(model, masks)(*inputs, **options)
        for made in (sparse, copy.deepcopy(sparse), torch.load(written, weights_only=False)):
            torch.testing.assert_close(made(*inputs, **options), wanted)
    assert any(isinstance(m, SparseRows) for m in sparse.modules()) != (name == "attention")


@pytest.mark.parametrize(
    "layer", [nn.Linear(6, 4), nn.Conv2d(4, 6, (3, 2), stride=2, groups=2), nn.Conv2d(4, 4, 3, groups=4, bias=False)]
)
def test_a_sparse_layer_shows_a_dense_weight_and_the_sizes_of_the_layer(layer):
    masks = {"weight": torch.rand(layer.weight.shape) < 0.5}
    masks["weight"].view(-1)[0] = True
    sparse, wanted = to_csr(layer, masks), with_zeros(layer, masks)
    assert torch.equal(sparse.weight, wanted.weight)
    assert sparse.bias is wanted.bias is None or torch.equal(sparse.bias, wanted.bias)
    for name in layer.__constants__:
        assert name == "output_padding" or getattr(sparse, name) == getattr(layer, name)
    assert sum(p.numel() for p in sparse.parameters()) == int(masks["weight"].sum()) + len(
        () if wanted.bias is None else wanted.bias
    )
    assert not any(p.requires_grad for p in sparse.parameters())


def test_a_convolution_takes_an_image_without_a_batch():
    layer, image = nn.Conv2d(3, 4, 3, padding=1), torch.randn(3, 5, 5)
    masks = random_masks(layer)
    torch.testing.assert_close(to_csr(layer, masks)(image), with_zeros(layer, masks)(image))


def test_layers_with_hooks_or_computed_tensors_stay_dense():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4))
    model[0].register_forward_hook(lambda layer, inputs, output: output.flip(1))
    prune.random_unstructured(model[1], "bias", 3)
    inputs, masks = torch.randn(3, 6), {name: p > 0 for name, p in model.named_parameters() if p.ndim > 1}
    with torch.no_grad():
        model(inputs)  # so that torch can copy it
        model[1].bias_orig.add_(1.0)  # as a step does
        sparse = to_csr(model, masks)
        torch.testing.assert_close(sparse(inputs), with_zeros(model, masks)(inputs))
    assert [type(layer) for layer in sparse[:2]] == [nn.Linear, nn.Linear]
    assert isinstance(sparse[2], SparseRows)
