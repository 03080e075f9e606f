"""Every model of the package at a size for tests, a net of awkward layers, and masks for them."""

import torch
from torch import nn

import flatsparse as fs
from flatsparse.layers import PRUNABLE, prunable
from flatsparse.models import IMAGES, MODELS


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
        self.shared = nn.Linear(6, 6)
        self.again = self.shared

    def forward(self, x):
        x = self.ring(self.grouped(torch.relu(self.depthwise(torch.relu(self.stem(x))))))
        x = torch.relu(self.line(self.point(x).flatten(2))).mean(2)
        return self.again(torch.relu(self.shared(x)))


def transformer():
    return fs.models.causal_transformer(vocabulary=32, width=16, depth=2, heads=2, length=8)


SMALL = {**dict.fromkeys(("resnet18", "resnet34", "resnet50"), (3, 32, 32))}  # images as large as they need to be
NETS = {
    "linear": (lambda: nn.Linear(8, 4), lambda: torch.randn(3, 8)),
    "awkward": (Awkward, lambda: torch.randn(3, 3, 11, 9)),
    "transformer": (transformer, lambda: torch.randint(32, (3, 8))),
    **{name: (make, lambda name=name: torch.randn(3, *SMALL.get(name, IMAGES[name]))) for name, make in MODELS.items()},
}


def net(name, sparsity=0.8):
    """A model in evaluation mode with statistics of its own, its masks, and inputs; weights are not zero outside the masks."""
    torch.manual_seed(0)
    make, sample = NETS[name]
    model = make()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    masks = {n: torch.rand(p.shape) >= sparsity for n, (p, m) in prunable(model).items() if isinstance(m, PRUNABLE)}
    first = next(iter(masks))
    with torch.no_grad():  # a live weight that is zero, and a row without any live one
        model.get_parameter(first).view(-1)[1] = 0.0
    masks[first].view(-1)[1] = True
    if masks[first].shape[0] > 2:
        masks[first][2] = False
    return model.eval(), masks, sample()


def halved(model, masks):
    """Take away all inputs and outputs of each second output channel of convolutions and linear layers, in the masks."""
    for mask in masks.values():
        mask[1::2] = False
