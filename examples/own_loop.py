"""A plain PyTorch loop, as a function of an arm: `flatsparse compare examples/own_loop.py:train --rho 0.2`."""

import torch
from sklearn.datasets import load_digits
from torch import nn

DIGITS = load_digits()
IMAGES, LABELS = torch.tensor(DIGITS.data, dtype=torch.float32) / 16, torch.tensor(DIGITS.target)
TRAIN, TEST = slice(0, 600), slice(1200, None)
EPOCHS, BATCH = 10, 50


def train(arm):
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = arm.optimizer(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    arm.sparsify(model, optimizer, steps=EPOCHS * 600 // BATCH)
    for _ in range(EPOCHS):
        for indices in torch.randperm(600).split(BATCH):

            def closure(indices=indices):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(IMAGES[TRAIN][indices]), LABELS[TRAIN][indices])
                loss.backward()
                return loss

            optimizer.step(closure)  # with a closure, SAM can be an arm too
    model.eval()
    with torch.no_grad():
        outputs = model(IMAGES[TEST])
    correct = outputs.argmax(1) == LABELS[TEST]
    return {"accuracy": 100 * correct.float().mean(), "loss": nn.functional.cross_entropy(outputs, LABELS[TEST])}
