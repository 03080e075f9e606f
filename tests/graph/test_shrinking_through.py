"""Whatever stands between two layers: a shrunk model computes what the masked one does, or has kept the channels."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flatsparse.graph.groups import channel_groups
from flatsparse.graph.shrink import narrow, shrink, widths
from tests.graph.test_shrinking import assert_equal_outputs, masked, trained_norms

C, SIZE = 8, 6


def of(dims, name):
    """The module of a family, such as Conv2d."""
    return getattr(nn, f"{name}{dims}d")


def modules(dims):
    """Modules that halve, reorder, mix, pool, pad or leave alone the channels of (N, 8, 6, …)."""
    sides = [SIZE] * dims
    yield from (nn.GLU(1), nn.Softmax(1), nn.LogSoftmax(1), nn.GroupNorm(2, C), nn.LocalResponseNorm(3))
    yield from (nn.LayerNorm([C, *sides]), nn.LayerNorm(SIZE), nn.RMSNorm([C, *sides]), nn.PReLU(C), nn.PReLU())
    yield from (nn.ChannelShuffle(2), nn.Unflatten(1, (2, C // 2)), nn.Flatten(), nn.Flatten(2), nn.Flatten(-dims - 1))
    yield from (nn.Threshold(0.1, 2.0), nn.LogSigmoid(), nn.Sigmoid(), nn.ReLU(inplace=True), nn.Linear(SIZE, 4))
    yield from (nn.Upsample(scale_factor=2), nn.AlphaDropout(), of(dims, "Dropout")())
    for affine, track in ((True, False), (False, True), (False, False)):
        yield of(dims, "BatchNorm")(C, affine=affine, track_running_stats=track)
    yield from (of(dims, "InstanceNorm")(C, affine=True), of(dims, "ConstantPad")(1, 0.5))
    yield from (of(dims, "MaxPool")(2), of(dims, "MaxPool")(2, return_indices=True))
    yield from (of(dims, "AdaptiveAvgPool")(2), of(dims, "AdaptiveMaxPool")(2, return_indices=True))
    yield from (of(dims, "AvgPool")(3, 1, 1), of(dims, "AvgPool")(2, ceil_mode=True))
    yield from (of(dims, "Conv")(C, 2 * C, 1, groups=C), of(dims, "Conv")(C, C, 1, groups=4))
    for groups, outputs in ((1, 6), (1, 1), (2, 4), (C, C), (C, 2 * C)):
        yield of(dims, "ConvTranspose")(C, outputs, 3, stride=2, padding=1, groups=groups)
    if dims == 1:  # torch takes the batch for channels, and pools over these
        yield from (nn.MaxPool2d(3, 1, 1), nn.AdaptiveAvgPool2d((C, 3)), nn.LSTM(SIZE, 4, batch_first=True))
        yield nn.TransformerEncoderLayer(SIZE, 2, 4, batch_first=True)
    if dims == 2:
        yield from (nn.PixelShuffle(2), nn.PixelUnshuffle(2), nn.Softmax2d(), nn.MaxPool3d(3, 1, 1), nn.LPPool2d(2, 2))


def into_view(x):
    x[:, :3].mul_(0.0)
    return x


def into_flat(x):
    x.view(x.size(0), -1).mul_(2.0)
    return x


FUNCTIONS = {  # of (N, 8, 6, 6)
    "chunk": lambda x: torch.chunk(x, 2, 1)[0],
    "split": lambda x: x.split(4, 1)[1],
    "narrow": lambda x: x.narrow(1, 2, 4),
    "unbind": lambda x: torch.stack((x.unbind(1)[3], x.unbind(1)[0]), 1),
    "index": lambda x: x[:, [3, 2, 1, 0]],
    "slice": lambda x: x[:, ::2],
    "flip": lambda x: x.flip(1),
    "roll": lambda x: x.roll(1, 1),
    "permute": lambda x: x.transpose(1, 2),
    "movedim": lambda x: x.movedim(1, -1).movedim(-1, 1),
    "glu": lambda x: F.glu(x, 1),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "softmax": lambda x: F.softmax(x, 1),
    "normalize": lambda x: F.normalize(x),
    "gate": lambda x: torch.sigmoid(x) * x,
    "cat": lambda x: torch.cat([x, F.relu(x)], 1),
    "cat negative": lambda x: torch.cat([x, F.relu(x)], -3),
    "cat by keywords": lambda x: torch.cat(tensors=(x, F.relu(x)), dim=1),
    "cat as numpy": lambda x: torch.cat([x, F.relu(x)], axis=1),
    "cat in batch": lambda x: torch.cat([x, F.relu(x)])[:4],
    "cat in space": lambda x: torch.cat([x, F.relu(x)], -1),
    "cat twice": lambda x: torch.cat([x, x], 1),
    "cat twice, flat": lambda x: torch.cat([x, F.relu(x), x], 1).flatten(1),
    "cat of flat": lambda x: torch.cat([x.flatten(1), x.flatten(1)], 1),
    "flatten two": lambda x: x.flatten(1, 2),
    "flatten negative": lambda x: x.flatten(-3),
    "view": lambda x: x.view(x.shape[0], C, -1),
    "reshape": lambda x: x.reshape(x.size(0), 4, 2, -1).flatten(1, 2),
    "mean": lambda x: x.mean((-2, -1)),
    "mean as numpy": lambda x: x.mean((2, 3), keepdims=True) * x,
    "mean of channels": lambda x: x.mean(1, keepdim=True),
    "mean of all": lambda x: x - x.mean(),
    "amax": lambda x: x.amax((2, 3)),
    "max of channels": lambda x: x.max(1, keepdim=True)[0],
    "repeat": lambda x: x.repeat_interleave(2, 1),
    "stack": lambda x: torch.stack([x, x], 2).flatten(1, 2),
    "cumsum": lambda x: x.cumsum(1),
    "sort": lambda x: x.sort(1)[0],
    "where": lambda x: torch.where(x > 0, x, -x),
    "by width": lambda x: x / x.shape[1],
    "by batch": lambda x: x * x.shape[0],
    "by numel": lambda x: x / x.numel(),
    "pad channels": lambda x: F.pad(x, (0, 0, 0, 0, 0, 2)),
    "pool over channels": lambda x: F.avg_pool3d(x, 3, 1, 1),
    "pool with indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "batch norm": lambda x: F.batch_norm(x, None, None, training=True),
    "into a view": into_view,
    "into a flat view": into_flat,
    "into itself": lambda x: x.add_(1.0) * 2,
    "with out": lambda x: torch.add(x, 1.0, out=x.clone()),
}


class Through(nn.Module):
    """A layer with a batch norm, something, and a layer that takes what that gives."""

    def __init__(self, dims, middle):
        super().__init__()
        self.a, self.norm, self.middle = of(dims, "Conv")(3, C, 1), of(dims, "BatchNorm")(C), middle
        self.several = False
        with torch.no_grad():
            y = self.eval().between(torch.zeros(2, 3, *[SIZE] * dims))
        self.several = isinstance(y, tuple)
        y = y[0] if self.several else y
        self.c = of(dims, "Conv")(y.shape[1], 2, 1) if y.ndim == dims + 2 else nn.Linear(y.shape[-1], 2)
        trained_norms(self.norm)

    def between(self, x):
        y = self.middle(self.norm(self.a(x)))
        return y[0] if self.several else y

    def forward(self, x):
        return self.c(self.between(x))


def random_masks(model, seed):
    """Masks that take rows, columns, or a share of all entries."""
    source = torch.Generator().manual_seed(seed)
    masks = {}
    for name, p in model.named_parameters():
        if p.ndim > 1:
            rows, columns = (torch.rand(size, generator=source) < 0.6 for size in p.shape[:2])
            kept = torch.ones_like(p, dtype=torch.bool)
            for dim, live in ((0, rows), (1, columns)):
                if torch.rand((), generator=source) < 0.7:
                    kept &= live.view([-1 if d == dim else 1 for d in range(p.ndim)])
            masks[name] = kept
    return masks


def assert_shrinks_exactly(model, inputs):
    for seed, example in enumerate((None, inputs, None)):
        masks = random_masks(model, seed)
        assert_equal_outputs(masked(model, masks), shrink(model, masks, example), inputs)


MODULES = {f"{d}d-{i}-{type(m).__name__}": (d, m) for d in (1, 2, 3) for i, m in enumerate(modules(d))}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n[0] == "3" else n for n in MODULES])
def test_through_any_module(name):
    torch.manual_seed(0)
    dims, module = MODULES[name]
    assert_shrinks_exactly(Through(dims, copy.deepcopy(module)), torch.randn(4, 3, *[SIZE] * dims))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_through_any_function(name):
    torch.manual_seed(0)
    assert_shrinks_exactly(Through(2, FUNCTIONS[name]), torch.randn(4, 3, SIZE, SIZE))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, C])
def test_channels_of_a_transposed_convolution_go(dims, groups):
    model = Through(dims, of(dims, "ConvTranspose")(C, C, 3, stride=2, groups=groups))
    a, *rest = channel_groups(model)
    assert [group.why_kept for group in (a, *rest)] == [None] * (2 if groups == 1 else 1) + ["the model's output"]
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters() if p.ndim > 1}
    masks["middle.weight"][:3] = False  # inputs, or channels of a depthwise one
    masks["c.weight"][:, :2] = False
    small, inputs = shrink(model, masks), torch.randn(2, 3, *[SIZE] * dims)
    assert_equal_outputs(masked(model, masks), small, inputs)
    middle = small.middle
    assert (middle.in_channels, middle.out_channels) == ((C - 3, C - 2) if groups == 1 else (C - 3, C - 3))
    assert middle.weight.shape[:2] == ((C - 3, C - 2) if groups == 1 else (C - 3, 1))
    again = narrow(model, widths(small)).eval()
    again.load_state_dict(small.state_dict())
    assert torch.equal(again(inputs), small(inputs))
