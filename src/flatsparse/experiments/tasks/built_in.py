"""The built-in tasks that are not the classification of images, by the name that ``--data`` takes."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from flatsparse.common.errors import InputError
from flatsparse.experiments.data.number_words import number_words
from flatsparse.experiments.data.sentences import has_pairs, read_pairs
from flatsparse.experiments.data.sources import folder_of_copies
from flatsparse.experiments.data.vocabulary import learn_subwords, learn_words
from flatsparse.experiments.tasks.language import check_text, language_task
from flatsparse.experiments.tasks.run_task import RunTask
from flatsparse.experiments.tasks.settings import Dataset
from flatsparse.experiments.tasks.translation import TokenPairs, encoded, translation_task
from flatsparse.models import LANGUAGE_MODELS, TRANSLATION_MODELS

VOCABULARY = 8000  # of sentence pairs
NOT_LANGUAGES = ("txt", "npz", "zip", "tar", "gz", "csv")


class Make(Protocol):
    """A function that returns the task of a run, see ``make_task``."""

    def __call__(self, chosen: Dataset, *, model: str, seed: int, label_smoothing: float) -> RunTask: ...


@dataclass(frozen=True)
class BuiltIn:
    """A built-in task.

    Attributes:
        about: what it is, a line.
        reads: what its models read, for messages.
        models: that can be trained on it, by name.
        model: the usual one.
        make: returns the task of a run.
        check: raises InputError when the data are not in the folder of local copies.
    """

    about: str
    reads: str
    models: Mapping[str, Callable[..., Any]]
    model: str
    make: Make
    check: Callable[[Path | None], object]


def built_in(data: str) -> BuiltIn | None:
    """Return the built-in task of a name, or of a folder of text; None for data that is of images, or is unknown.

    Raises: InputError for a folder of sentence pairs whose direction is not clear.
    """
    if data in TASKS:
        return TASKS[data]
    named = re.fullmatch(r"(.+):([a-z]{2,3})-([a-z]{2,3})", data)
    if named and os.path.isdir(named[1]):
        return _pairs_of(Path(named[1]), (named[2], named[3]))
    if not data or not os.path.isdir(data):
        return None
    folder = Path(data)
    if (folder / "train.txt").is_file():
        return BuiltIn(
            "a text",
            "a text",
            LANGUAGE_MODELS,
            "gpt2_tiny",
            functools.partial(_language, folder),
            lambda _: check_text(folder),
        )
    endings = sorted(file.suffix[1:] for file in folder.glob("train.*"))
    languages = [ending for ending in endings if re.fullmatch(r"[a-z]{2,3}", ending) and ending not in NOT_LANGUAGES]
    if len(languages) < 2:
        return None
    if len(languages) == 2 and "en" in languages:
        return _pairs_of(folder, ("en", next(one for one in languages if one != "en")))
    way = f"{data}:{languages[0]}-{languages[1]}"
    raise InputError(f"'{data}' has sentences in {', '.join(languages)}: give source and target, such as --data {way}")


def _pairs_of(folder: Path, languages: tuple[str, str]) -> BuiltIn:
    about = f"sentence pairs {languages[0]}-{languages[1]}"
    return _translation(about, folder.name, lambda _: folder, languages, "transformer_tiny", VOCABULARY)


def _translation(
    about: str,
    name: str,
    find: Callable[[Path | None], Path],
    languages: tuple[str, str],
    model: str,
    vocabulary: int,
) -> BuiltIn:
    """Return the task of translating the sentence pairs of a folder.

    Args:
        find: returns the folder for that of local copies.
    """

    def make(chosen: Dataset, *, model: str, seed: int, label_smoothing: float) -> RunTask:
        folder = find(chosen.data_dir)
        parts = read_pairs(folder, name, languages)
        tokens = _tokens(folder, name, languages, chosen.vocabulary or vocabulary)
        return translation_task(parts, tokens, chosen, model=model, seed=seed, label_smoothing=label_smoothing)

    return BuiltIn(about, "sentence pairs", TRANSLATION_MODELS, model, make, find)


@functools.cache
def _tokens(folder: Path, name: str, languages: tuple[str, str], vocabulary: int) -> TokenPairs:
    parts = read_pairs(folder, name, languages)
    return encoded(parts, lambda texts: learn_subwords(texts, vocabulary))


def _numbers(chosen: Dataset, *, model: str, seed: int, label_smoothing: float) -> RunTask:
    return translation_task(
        number_words(), _number_tokens(), chosen, model=model, seed=seed, label_smoothing=label_smoothing
    )


@functools.cache
def _number_tokens() -> TokenPairs:
    return encoded(number_words(), learn_words)


def _language(folder: Path, chosen: Dataset, *, model: str, seed: int, label_smoothing: float) -> RunTask:
    return language_task(folder, chosen, model=model, seed=seed, label_smoothing=label_smoothing)


def _folder_of(name: str, inner: tuple[str, ...], how: str) -> Callable[[Path | None], Path]:
    """Return a function that finds the folder of a named set of English and German sentences among the local copies."""

    def find(data_dir: Path | None) -> Path:
        copies = folder_of_copies(data_dir)
        places = [copies / name / one for one in inner]
        for place in places:
            if has_pairs(place, ("en", "de")):
                return place
        raise InputError(f"no {name} under '{copies}': put {how} there, and name '{copies}' with --data-dir")

    return find


TASKS: dict[str, BuiltIn] = {
    "numbers": BuiltIn(
        "Numbers in English words to translate into German ones, embedded: 10,000 pairs, and 500 for the test.",
        "sentence pairs",
        TRANSLATION_MODELS,
        "transformer_tiny",
        _numbers,
        lambda _: None,
    ),
    "multi30k": _translation(
        "Multi30k (Elliott et al. 2016), English to German: 29,000 descriptions of pictures, 1,000 for the test (2016).",
        "multi30k",
        _folder_of("multi30k", ("",), "multi30k/train.en, train.de, val.en, val.de, test_2016_flickr.en and .de"),
        ("en", "de"),
        "transformer_small",
        VOCABULARY,
    ),
    "wmt14": _translation(
        "WMT14 (Bojar et al. 2014), English to German: 4.5 million sentences; newstest2013 validates, newstest2014 is the test.",
        "wmt14",
        _folder_of(
            "wmt14", ("", "de-en"), "wmt14/train.en, train.de, valid.en, …, or the hub's parquet files of wmt14/de-en"
        ),
        ("en", "de"),
        "transformer_base",
        37_000,
    ),
}
