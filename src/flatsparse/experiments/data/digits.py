"""Digits: the embedded data set."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch

from flatsparse.common.seeds import generator
from flatsparse.experiments.data.samples import DataSet, Samples


@functools.cache
def digits(data_dir: Path) -> DataSet:
    """1,797 images of handwritten digits, 8x8, grey (Alpaydin & Kaynak 1998), embedded: 797 for the test."""
    from sklearn.datasets import load_digits

    source = load_digits()
    images = torch.from_numpy(np.round(source.images * (255 / 16)).astype(np.uint8))[..., None]
    everything = Samples(images, torch.from_numpy(source.target.astype(np.int64)))
    order = torch.randperm(len(everything), generator=generator("test", "digits"))  # the source is sorted by writer
    pool, test = everything.take(order[:1000]), everything.take(order[1000:])
    return DataSet("digits", pool, test, classes=10, augmented=False, validation_size=300)
