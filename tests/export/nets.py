"""Every model of the package at a size for tests, a net of awkward layers, and masks for them."""

import copy

import torch
from torch import nn

import flatsparse as fs
from flatsparse.models import IMAGES, MODELS
from flatsparse.sparse.layers import PRUNABLE, prunable
from tests.helpers import IMAGE_MODELS, image_size


class Awkward(nn.Module):
    """Depthwise, grouped, strided, dilated, padded to the same size and round the edge, of no square kernel; a shared layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, (3, 2), stride=(2, 1), padding=(1, 0))
        self.depthwise = nn.Conv2d(8, 16, 3, padding=1, groups=8, bias=False)
        self.grouped = nn.Conv2d(16, 8, 3, padding="same", dilation=2, groups=2)
        self.ring = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")
        self.point = nn.Conv2d(8, 8, 1, stride=2, bias=False)
        self.line = nn.Conv1d(8, 6, 3)  # of a kind that csr leaves alone
        self.first, self.second, self.third = (nn.BatchNorm2d(width) for width in (8, 16, 8))
        self.shared = nn.Linear(6, 6)
        self.again = self.shared

    def forward(self, x):
        x = torch.relu(self.second(self.depthwise(torch.relu(self.first(self.stem(x))))))
        x = self.third(self.ring(self.grouped(x)))
        x = self.line(self.point(x).flatten(2)).amax(2)
        return self.again((5 * self.shared(x)).tanh())


def transformer():
    return fs.models.causal_transformer(vocabulary=32, width=16, depth=2, heads=2, length=8)


OURS = [name for name in MODELS if name in IMAGE_MODELS]
NETS = {
    "linear": (lambda: nn.Linear(8, 4), lambda: torch.randn(3, 8)),
    "awkward": (Awkward, lambda: torch.randn(3, 3, 11, 9)),
    "transformer": (transformer, lambda: torch.randint(32, (3, 8))),
    **{
        name: (MODELS[name], lambda name=name: torch.randn(3, IMAGES[name][0], *2 * [image_size(name)]))
        for name in OURS
    },
}


def net(name, *, half=False, dtype=torch.float32):
    """A model in evaluation mode, its masks and inputs, to which its masked outputs are sensitive; weights are not zero
    outside the masks. With half, no second output channel or feature has a live weight.
    """
    torch.manual_seed(0)
    make, sample = NETS[name]
    model, inputs = make(), sample()
    dense = 0.5 if name == "awkward" else 0.2
    masks = {n: torch.rand(p.shape) < dense for n, (p, m) in prunable(model).items() if isinstance(m, PRUNABLE)}
    first = next(iter(masks))
    with torch.no_grad():  # a live weight that is zero, and a row without any live one
        model.get_parameter(first).view(-1)[1] = 0.0
    masks[first].view(-1)[1] = True
    masks[first][2] = False
    for mask in masks.values() if half else ():
        mask[1::2] = False
    twin = masked(model, masks).train()
    for module in twin.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.bias, -0.3, 0.3)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.momentum = 1.0  # so that the statistics are those of these inputs, and nothing fades on its way
    with torch.no_grad():
        twin(inputs)
        outputs = twin.eval()(inputs)
    assert (outputs[0] - outputs[1]).abs().max() > 0.01 * outputs.abs().max(), (
        "a model that says nothing proves nothing"
    )
    model.load_state_dict({**twin.state_dict(), **{n: p.detach() for n, p in model.named_parameters() if p.ndim > 1}})
    return model.eval().to(dtype), masks, inputs.to(dtype) if inputs.is_floating_point() else inputs


def masked(model, masks):
    """The plain form of a sparse model: every masked weight multiplied by its mask."""
    twin = copy.deepcopy(model)
    for name, p in twin.named_parameters():
        if name in masks:
            p.data = p.data * masks[name]
    return twin
