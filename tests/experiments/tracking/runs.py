"""A tracker that remembers what it is told, and a small run to follow."""

import random

import numpy as np
import torch

from flatsparse.experiments.run.config import RunConfig

SMALL = RunConfig.of(train_size=64, validation_size=32, batch_size=16, epochs=3, sparsity=0.9, sharpness="s2sam")
STEPS = [4, 8, 12]  # of its epochs


class Remembered:
    """A tracker that draws random numbers wherever it is called, and raises where it is asked to."""

    def __init__(self, raises=()):
        self.told, self.raises = [], raises

    def start(self, run):
        self._note("start", run)

    def log(self, values, step):
        self._note("log", step, values)

    def finish(self, result):
        self._note("finish", result)

    def _note(self, what, *arguments):
        self.told.append((what, *arguments))
        torch.rand(3), random.random(), np.random.rand()
        if what in self.raises:
            raise ConnectionError(f"no answer\nto {what}")

    @property
    def calls(self):
        return [call[0] for call in self.told]

    @property
    def steps(self):
        return [call[1] for call in self.told if call[0] == "log"]

    @property
    def run(self):
        return self.told[0][1]
