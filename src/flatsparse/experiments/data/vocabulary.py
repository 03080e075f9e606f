"""Vocabularies: whole words, or subwords that are learned from training text."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from flatsparse.common.errors import InputError
from flatsparse.common.files import write_atomic
from flatsparse.common.user_cache import user_cache

PADDING, START, END, UNKNOWN = range(4)  # the first tokens of every vocabulary
SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")
SENTENCES = 1_000_000  # to learn subwords from, at most; more change little and take hours


class Vocabulary(Protocol):
    """A vocabulary: from text to token numbers and back."""

    def __len__(self) -> int:
        """Return the number of tokens."""

    @property
    def file(self) -> bytes:
        """All that it is, as the bytes of a file."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text, without start and end."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens; special ones are left out."""


@dataclass(frozen=True)
class Words:
    """A vocabulary of words and punctuation marks, after the special tokens."""

    words: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.words)

    @property
    def file(self) -> bytes:
        """A word a line."""
        return "\n".join(self.words).encode()

    @functools.cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each word."""
        return {word: number for number, word in enumerate(self.words)}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text. See ``Vocabulary``."""
        return [[self.numbers.get(word, UNKNOWN) for word in split_words(text)] for text in texts]

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the words, with spaces between. See ``Vocabulary``."""
        return " ".join(self.words[token] for token in tokens if token not in (PADDING, START, END))


def learn_words(texts: Iterable[str]) -> Words:
    """Return the vocabulary of all words of some texts, in the order of the alphabet."""
    return Words((*SPECIAL, *sorted({word for text in texts for word in split_words(text)})))


def split_words(text: str) -> list[str]:
    """Return the words and the punctuation marks of a text.

    >>> split_words("twenty-one, or more")
    ['twenty', '-', 'one', ',', 'or', 'more']
    """
    return re.findall(r"\w+|[^\w\s]", text)


@dataclass(frozen=True)
class Subwords:
    """A vocabulary of byte pairs in the form of SentencePiece (Kudo & Richardson 2018), which reads and gives raw text."""

    file: bytes

    def __len__(self) -> int:
        return int(self._processor.vocab_size())

    @functools.cached_property
    def _processor(self) -> Any:
        return _sentencepiece().SentencePieceProcessor(model_proto=self.file)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text. See ``Vocabulary``."""
        encoded: list[list[int]] = self._processor.encode(list(texts), num_threads=1)
        return encoded

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text. See ``Vocabulary``."""
        return str(self._processor.decode([token for token in tokens if token > END]))


def learn_subwords(texts: Sequence[str], size: int) -> Subwords:
    """Return byte pairs (Sennrich et al. 2016) learned from texts: the same for the same texts, whatever learned before.

    It is kept in the user's cache, where it is found again by the texts, because of millions of sentences it takes minutes.

    Args:
        texts: the training text alone, all languages of a joint vocabulary; of more than a million, an evenly spaced million.
        size: tokens, with the special ones.

    Raises: InputError when the text is too short for a vocabulary of this size.
    """
    chosen = texts[:: -(-len(texts) // SENTENCES)] if len(texts) > SENTENCES else texts
    kept = _kept(chosen, size)
    if kept is not None and kept.is_file() and (found := _unsealed(kept.read_bytes())) is not None:
        return Subwords(found)
    learned = _learned(chosen, size)
    if kept is not None:
        with contextlib.suppress(OSError, InputError):  # a cache is never needed
            kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(kept, hashlib.sha256(learned).digest() + learned)
    return Subwords(learned)


def _learned(texts: Sequence[str], size: int) -> bytes:
    model = io.BytesIO()
    try:
        _sentencepiece().SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=size,
            pad_id=PADDING,
            bos_id=START,
            eos_id=END,
            unk_id=UNKNOWN,
            normalization_rule_name="identity",  # so that what is decoded is what was written
            character_coverage=0.9999,
            max_sentence_length=1 << 20,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as problem:
        reason = str(problem).strip().splitlines()[-1].rpartition("] ")[2]
        raise InputError(
            f"--vocabulary {size} cannot be learned from {len(texts):,} lines ({reason}): give another"
        ) from None
    return model.getvalue()


def _sentencepiece() -> Any:
    try:
        import sentencepiece
    except ImportError:
        raise InputError("text needs sentencepiece, which is not installed: pip install 'flatsparse[text]'") from None
    return sentencepiece


def _kept(texts: Sequence[str], size: int) -> Path | None:
    """Return the file of the cache for a vocabulary; None where there is no home."""
    digest = hashlib.sha256(f"{_sentencepiece().__version__} {size}\n".encode())
    for text in texts:
        digest.update(text.encode() + b"\n")
    cache = user_cache()
    return None if cache is None else cache / f"subwords-{digest.hexdigest()[:32]}.model"


def _unsealed(content: bytes) -> bytes | None:
    """Return what a file of the cache holds; None where it is damaged."""
    seal, model = content[:32], content[32:]
    return model if hashlib.sha256(model).digest() == seal else None
