"""Sentence pairs from line-aligned text files, or from parquet files as the hub has them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flatsparse.common.errors import InputError
from flatsparse.experiments.data.pixels import brief

VALIDATION = ("valid", "val", "validation", "dev")
TEST = ("test", "test_2016_flickr")


@dataclass(frozen=True)
class Pairs:
    """Sentences and their translations, line by line."""

    source: tuple[str, ...]
    target: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True)
class SentenceParts:
    """The parts of a set of sentence pairs.

    Attributes:
        source: the place that they were read from.
    """

    name: str
    source: str
    train: Pairs
    validation: Pairs
    test: Pairs

    @property
    def fingerprint(self) -> str:
        """A hash over all sentences."""
        return digest_of(
            *(side for part in (self.train, self.validation, self.test) for side in (part.source, part.target))
        )


def digest_of(*texts: Sequence[str]) -> str:
    """Return a hash over lists of lines."""
    digest = hashlib.sha256()
    for lines in texts:
        digest.update(f"{len(lines)}\n".encode())
        for line in lines:
            digest.update(line.encode() + b"\n")
    return digest.hexdigest()


@functools.cache
def read_pairs(folder: Path, name: str, languages: tuple[str, str]) -> SentenceParts:
    """Return the sentence pairs of a folder.

    Args:
        folder: holds ``train``, ``valid`` (or ``val``, ``dev``) and ``test``, each as a file a language that ends in it, line
            by line (``train.en``, ``train.de``), or as parquet files whose column ``translation`` has an entry a language.
        name: of the data, for messages.
        languages: source and target, as names of files end in them.

    Raises: InputError when a part is missing, empty or not line-aligned.
    """
    train, validation, test = (_part(folder, names, name, languages) for names in (("train",), VALIDATION, TEST))
    return SentenceParts(name, str(folder.resolve()), train, validation, test)


def has_pairs(folder: Path, languages: tuple[str, str]) -> bool:
    """Return if a folder has training sentences in both languages."""
    return all((folder / f"train.{language}").is_file() for language in languages) or bool(_tables(folder, "train"))


def read_lines(file: Path) -> tuple[str, ...]:
    """Return the lines of a text file. Raises InputError for one that is not UTF-8 text."""
    try:
        text = file.read_text(encoding="utf-8")  # which reads \r\n as \n
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"'{file}' cannot be read as UTF-8 text ({brief(problem)}): convert it") from None
    return tuple(text.removesuffix("\n").split("\n")) if text else ()


def _part(folder: Path, names: tuple[str, ...], name: str, languages: tuple[str, str]) -> Pairs:
    for part in names:
        files = [folder / f"{part}.{language}" for language in languages]
        if all(file.is_file() for file in files):
            return _aligned(files)
        if tables := _tables(folder, part):
            return _of_tables(tables, languages)
    wanted = " and ".join(f"{names[0]}.{language}" for language in languages)
    raise InputError(f"no {wanted} of {name} in '{folder}': put the text files there, a sentence a line")


def _aligned(files: Sequence[Path]) -> Pairs:
    """Return the sentences of two files; pairs of which a side is empty are left out, as they say nothing."""
    source, target = (read_lines(file) for file in files)
    if len(source) != len(target):
        raise InputError(
            f"'{files[0]}' has {len(source):,} lines and '{files[1]}' {len(target):,}: give files that are line-aligned"
        )
    return _whole(source, target, files[0])


def _whole(source: Sequence[str], target: Sequence[str], file: Path) -> Pairs:
    kept = [(s.strip(), t.strip()) for s, t in zip(source, target, strict=True) if s.strip() and t.strip()]
    if not kept:
        raise InputError(f"'{file}' holds no sentence pairs: give some")
    return Pairs(*(tuple(side) for side in zip(*kept, strict=True)))


def _tables(folder: Path, part: str) -> list[Path]:
    return sorted(file for place in (folder, folder / "data") for file in place.glob(f"{part}-*.parquet"))


def _of_tables(files: Sequence[Path], languages: tuple[str, str]) -> Pairs:
    import pyarrow.parquet as parquet

    try:
        rows = [
            row
            for file in files
            for row in parquet.read_table(file, columns=["translation"])["translation"].to_pylist()
        ]
        source, target = ([row[language] for row in rows] for language in languages)
    except Exception as problem:  # pyarrow's, and of rows that are no translations
        raise InputError(
            f"'{files[0]}' holds no translations {languages[0]}-{languages[1]} ({brief(problem)}): give line-aligned text files"
        ) from None
    return _whole(source, target, files[0])
