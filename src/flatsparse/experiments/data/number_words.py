"""Numbers in English and German words: sentence pairs without a file, for tests and short runs."""

from __future__ import annotations

import functools

import torch

from flatsparse.common.seeds import generator
from flatsparse.experiments.data.sentences import Pairs, SentenceParts

LIMIT = 100_000
TRAIN, VALIDATION, TEST = 10_000, 500, 500

_ENGLISH = """
zero one two three four five six seven eight nine
ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen
"""
_GERMAN = """
null eins zwei drei vier fünf sechs sieben acht neun
zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn achtzehn neunzehn
"""
ENGLISH, GERMAN = _ENGLISH.split(), _GERMAN.split()
ENGLISH_TENS = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
GERMAN_TENS = ["", "", "zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig"]


def english(number: int) -> str:
    """Return a number from 0 to 999,999 in English words.

    >>> english(42), english(20_315)
    ('forty-two', 'twenty thousand three hundred fifteen')
    """
    for size, name in ((1000, "thousand"), (100, "hundred")):
        if number >= size:
            rest = f" {english(number % size)}" if number % size else ""
            return f"{english(number // size)} {name}{rest}"
    if number < 20:
        return ENGLISH[number]
    return ENGLISH_TENS[number // 10] + (f"-{ENGLISH[number % 10]}" if number % 10 else "")


def german(number: int) -> str:
    """Return a number from 0 to 999,999 in German words, whose parts are apart; in print they are one word.

    Apart, because BLEU counts sequences of words.

    >>> german(42), german(21_101)
    ('zwei und vierzig', 'ein und zwanzig tausend ein hundert eins')
    """
    for size, name in ((1000, "tausend"), (100, "hundert")):
        if number >= size:
            rest = f" {german(number % size)}" if number % size else ""
            return f"{_before_a_noun(german(number // size))} {name}{rest}"
    if number < 20:
        return GERMAN[number]
    units = f"{_before_a_noun(GERMAN[number % 10])} und " if number % 10 else ""
    return units + GERMAN_TENS[number // 10]


def _before_a_noun(words: str) -> str:
    return words.removesuffix("s") if words.split()[-1] == "eins" else words


@functools.cache
def number_words() -> SentenceParts:
    """Return pairs of English and German number words: 10,000 to train on, 500 for validation and 500 for the test.

    They are the same in every run, and no number is in two of the parts.
    """
    order = torch.randperm(LIMIT, generator=generator("test", "numbers")).tolist()
    parts = [order[:TEST], order[TEST : TEST + VALIDATION], order[TEST + VALIDATION :][:TRAIN]]
    test, validation, train = (Pairs(tuple(map(english, numbers)), tuple(map(german, numbers))) for numbers in parts)
    return SentenceParts("numbers", "embedded", train, validation, test)
