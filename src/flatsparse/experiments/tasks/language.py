"""Language modelling: a text's next token, and perplexity."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from flatsparse.common.errors import InputError
from flatsparse.experiments.data.sentences import VALIDATION, digest_of, read_lines
from flatsparse.experiments.data.split import Batch
from flatsparse.experiments.data.token_batches import Sequences, TokenLists, TokenSplit
from flatsparse.experiments.data.vocabulary import END, Vocabulary, learn_subwords
from flatsparse.experiments.tasks.run_task import Evaluation
from flatsparse.experiments.tasks.sequences import Counts, NextToken, chosen_splits
from flatsparse.experiments.tasks.settings import Dataset
from flatsparse.models import LANGUAGE_MODELS

VOCABULARY = 2000


@dataclass(frozen=True, kw_only=True)
class LanguageModel(NextToken):
    """Predicting the next token of a text that is cut into windows, each of which begins without a context."""

    def logits(self, model: nn.Module, content: Sequences) -> Tensor:
        """Return the logits after each token, given those before it."""
        logits: Tensor = model(content.target[:, :-1])
        return logits

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: Iterable[Batch], count: int, *, detailed: bool = False) -> Evaluation:
        """Return the mean loss of a token, its exponential, which is the perplexity, and the accuracy of tokens in percent."""
        counts = Counts()
        for batch in batches:
            counts.add(self.logits(model, batch.content), batch.content)
        perplexity = math.exp(min(counts.mean_loss, 700.0))  # a net that has diverged has one that is no float
        return Evaluation(counts.mean_loss, {"perplexity": perplexity, "token accuracy": counts.accuracy})


def language_task(folder: Path, chosen: Dataset, *, model: str, seed: int, label_smoothing: float) -> LanguageModel:
    """Return the task of modelling the text of a folder; which windows are trained on follows the seed."""
    make = LANGUAGE_MODELS[model]
    length = inspect.signature(make).parameters["length"].default
    vocabulary, (pool, validation, test), fingerprint = _encoded(folder, chosen.vocabulary or VOCABULARY, length)
    return LanguageModel(
        name=chosen.data,
        identity={"name": folder.name, "source": str(folder.resolve()), "fingerprint": fingerprint},
        splits=chosen_splits(pool, validation, test, chosen, chosen.data, seed),
        fresh=functools.partial(make, len(vocabulary), length),
        samples=f"windows of {length} tokens out of {len(vocabulary):,}",
        better="lower",
        loss_name="cross-entropy of a token",
        vocabulary=vocabulary,
        network=model,
        label_smoothing=label_smoothing,
    )


def check_text(folder: Path) -> None:
    """Raise InputError when a folder has no text of all three parts."""
    _files(folder)


def _files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for names in (("train",), VALIDATION, ("test",)):
        file = next((folder / f"{name}.txt" for name in names if (folder / f"{name}.txt").is_file()), None)
        if file is None:
            raise InputError(
                f"no {names[0]}.txt in '{folder}': put the text there as train.txt, valid.txt and test.txt"
            )
        found.append(file)
    return found


@functools.cache
def _encoded(folder: Path, size: int, length: int) -> tuple[Vocabulary, tuple[TokenSplit, ...], str]:
    """Return the vocabulary and the windows of the texts of a folder, and a hash over both."""
    texts = [[line.strip() for line in read_lines(file) if line.strip()] for file in _files(folder)]
    for file, lines in zip(_files(folder), texts, strict=True):
        if not lines:
            raise InputError(f"'{file}' holds no text: give some")
    vocabulary = learn_subwords(texts[0], size)
    splits = tuple(windows(vocabulary.encode(lines), length) for lines in texts)
    return vocabulary, splits, digest_of(*texts, (vocabulary.file.hex(), str(length)))


def windows(lines: list[list[int]], length: int) -> TokenSplit:
    """Return windows of a text, each with the token before it, so that every token is predicted once.

    Args:
        lines: tokens of each line; an end is put after each, and before the first.
        length: predicted tokens of a window; the last may be shorter.
    """
    stream = [END, *(token for line in lines for token in (*line, END))]
    lists = [stream[start : start + length + 1] for start in range(0, len(stream) - 1, length)]
    return TokenSplit(TokenLists.of(lists), None, torch.arange(len(lists)))
