"""A small net of one's own: trained, made 2:4 sparse gradually, and compiled for an Arm Ethos-U85 beside the dense one.

    pip install 'flatsparse[edge]' scikit-learn
    python examples/edge.py

Put your own network in the place of ``network`` and your own data in that of ``data``; the rest stays.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import flatsparse as fs

EPOCHS, BATCH = 15, 64


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels to train on, and to test."""
    digits = load_digits()
    images, labels = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32), torch.tensor(digits.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order[:1400]], labels[order[:1400]], images[order[1400:]], labels[order[1400:]]


def network() -> nn.Module:
    """A convolutional net of 78,000 weights."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.Conv2d(64, 96, 3, padding=1), nn.BatchNorm2d(96), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10)),
    )


def train(model: nn.Module, images: Tensor, labels: Tensor, *, lr: float, sparse: bool) -> dict[str, Tensor]:
    """Train a network, and return its masks: none for a dense one."""
    steps = EPOCHS * -(-len(images) // BATCH)
    optimizer = fs.S2SAM(torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4), rho=0.05)
    optimizer.follow(model)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    masks: dict[str, Tensor] = {}
    if sparse:  # 2 of each 4 inputs; the first convolution has one input only, and stays dense
        training = fs.sparsify(
            model, optimizer, "gmp", sparsity=0.5, pattern=(2, 4), every=10, steps=steps, exclude=["0"]
        )
    model.train()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    if sparse:
        masks = training.masks
        training.detach()
    optimizer.unfollow()
    model.eval()
    return masks


def main(folder: Path) -> None:
    """Train, compile both networks, and say what 2:4 saves."""
    torch.manual_seed(0)
    images, labels, test_images, test_labels = data()
    dense = network()
    train(dense, images, labels, lr=0.1, sparse=False)
    sparse = copy.deepcopy(dense)
    masks = train(sparse, images, labels, lr=0.05, sparse=True)

    for name, model, own in (("dense", dense, {}), ("2:4", sparse, masks)):
        compiled = fs.export.compile_ethos_u(model, own, images[:128])
        found, file = compiled.estimate, folder / f"{name.replace(':', 'of')}.pte"
        file.write_bytes(compiled.pte)
        right = {
            "float": (model(test_images).argmax(1) == test_labels).float().mean(),
            "int8": (compiled.int8(test_images).argmax(1) == test_labels).float().mean(),
        }
        print(
            f"{name}: {right['float']:.1%} in float, {right['int8']:.1%} in int8; {found.macs:,} multiplications,"
            f" {found.cycles:,} cycles, {found.encoded_weight_bytes:,} bytes of weights; {file}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path())
