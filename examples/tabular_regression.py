"""Regression on a table of ten numbers each: how far will diabetes have gone in a year?

Train it sparse, and see whether S²-SAM helps:
    flatsparse train --task examples/tabular_regression.py:task
    flatsparse compare --task examples/tabular_regression.py:task
"""

import torch
from sklearn.datasets import load_diabetes
from torch import nn
from torch.utils.data import TensorDataset

from flatsparse import Task

table, progression = load_diabetes(return_X_y=True)
inputs = torch.tensor(table, dtype=torch.float32) * len(table) ** 0.5  # each column with mean 0 and variance 1
targets = torch.tensor(progression, dtype=torch.float32) / 100
TEST = torch.arange(len(inputs)) % 5 == 0  # one patient in five


def model():
    return nn.Sequential(
        nn.Linear(10, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 1), nn.Flatten(0)
    )


def loss(model, batch):  # a batch is what the data set's samples make, here a table's rows and their targets
    rows, wanted = batch
    return nn.functional.mse_loss(model(rows), wanted)


def score(model, batches):  # of a whole data set; the first number is the one that is compared
    errors = torch.cat([(model(rows) - wanted).abs() for rows, wanted in batches])
    return {"mean error": errors.mean(), "largest error": errors.max()}


def task():
    train, test = (TensorDataset(inputs[chosen], targets[chosen]) for chosen in (~TEST, TEST))
    return Task(model=model, train=train, test=test, loss=loss, score=score, better="lower")
