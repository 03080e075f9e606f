"""Synthetic translation: pairs of sentences of made-up words, drawn from a seed."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from flatsparse.common.seeds import generator
from flatsparse.experiments.data.samples import IGNORED, DataSet, Samples

WORDS, LENGTH = 16, 6  # of the language, and of a sentence
POOL, TEST = 11_000, 1_000


@functools.cache
def pairs(data_dir: Path) -> DataSet:
    """12,000 synthetic sentence pairs, embedded: the target is the source reversed, each word replaced by another.

    Ours, as a stand-in for machine translation: it asks for word order and vocabulary, and says nothing about language.
    Which word stands for which is drawn once. No sentence occurs twice, so none of the test is trained on.

    A sample is source, separator and target, read as by a language model: inputs are all tokens but the last, labels the
    next tokens, and only those of the target are asked for.
    """
    source = generator("pairs")
    meanings = torch.randperm(WORDS, generator=source)
    powers = WORDS ** torch.arange(LENGTH)
    numbers = torch.randperm(int(WORDS**LENGTH), generator=source)[: POOL + TEST]
    sentences = numbers[:, None] // powers % WORDS
    separator = torch.full((len(sentences), 1), WORDS)
    text = torch.cat([sentences, separator, meanings[sentences].flip(1)], dim=1)
    labels = text[:, 1:].clone()
    labels[:, :LENGTH] = IGNORED
    samples = Samples(text[:, :-1], labels)
    order = torch.arange(len(samples))
    pool, test = samples.take(order[:POOL]), samples.take(order[POOL:])
    return DataSet("pairs", pool, test, classes=WORDS + 1, augmented=False, validation_size=1000)
