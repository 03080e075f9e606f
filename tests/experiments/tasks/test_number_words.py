import pytest

from flatsparse.experiments.data.number_words import english, german, number_words


@pytest.mark.parametrize(
    ("number", "in_english", "in_german"),
    [
        (0, "zero", "null"),
        (1, "one", "eins"),
        (16, "sixteen", "sechzehn"),
        (30, "thirty", "dreißig"),
        (42, "forty-two", "zwei und vierzig"),
        (71, "seventy-one", "ein und siebzig"),
        (100, "one hundred", "ein hundert"),
        (101, "one hundred one", "ein hundert eins"),
        (1001, "one thousand one", "ein tausend eins"),
        (21_000, "twenty-one thousand", "ein und zwanzig tausend"),
        (
            99_999,
            "ninety-nine thousand nine hundred ninety-nine",
            "neun und neunzig tausend neun hundert neun und neunzig",
        ),
    ],
)
def test_numbers_in_words(number, in_english, in_german):
    assert (english(number), german(number)) == (in_english, in_german)


def test_no_two_numbers_have_the_same_words():
    assert len(set(map(english, range(100_000)))) == len(set(map(german, range(100_000)))) == 100_000


def test_no_number_is_in_two_parts_and_both_sides_are_the_same_number():
    parts = number_words()
    numbers = {english(number): number for number in range(100_000)}
    seen = [numbers[words] for part in (parts.train, parts.validation, parts.test) for words in part.source]
    assert len(set(seen)) == len(seen) == 11_000
    said = [words for part in (parts.train, parts.validation, parts.test) for words in part.target]
    assert said == [german(number) for number in seen]
