"""Run where a wheel is installed: its compiled libraries compute as torch does. Builds nothing where CC is no compiler."""

import os
from pathlib import Path

import torch
from torch import nn

import flatsparse as fs
from flatsparse.acceleration import kernels, layers
from flatsparse.sam import kernel


def computes(instructions: str) -> None:
    """A linear layer's output and gradients are those of the masked one, and a sum of squares is right."""
    kernels.use(instructions)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(131, 67))
    training = fs.sparsify(model, torch.optim.SGD(model.parameters(), lr=0.1), "static", sparsity=0.8, steps=10)
    x = torch.randn(37, 131, requires_grad=True)
    g, (mask,) = torch.randn(37, 67), training.masks.values()
    exact = torch.autograd.grad(model(x), (x, model[0].weight), g)
    y = model(x).detach()
    accelerated = fs.accelerate(model, training)
    ours = model(x)
    assert set(accelerated.layers.values()) == {"sparse"}, accelerated.layers
    gradients = torch.autograd.grad(ours, (x, model[0].weight), g)
    for got, wanted in ((ours, y), (gradients[0], exact[0]), (gradients[1], exact[1] * mask)):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(kernel.square([y]), float(y.double().square().sum()), rtol=1e-5, atol=0)


def main() -> None:
    """Compute on every instruction set of this processor, and print what was loaded."""
    layers.speedup = lambda kind: 2.0  # sparse, whatever a measurement would say of layers as small as these
    package = Path(fs.__file__).parent
    loaded = [Path(library._name) for library in (kernels.library(), kernel.library())]
    assert all(package in file.parents for file in loaded), loaded
    best = kernels.use(None)
    for instructions in kernels.SETS[: kernels.SETS.index(best) + 1]:
        computes(instructions)
    print(os.pathsep.join([best, *map(str, loaded)]))


if __name__ == "__main__":
    main()
