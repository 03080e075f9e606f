"""Small texts for tests, made of number words."""

from flatsparse.experiments.data.number_words import english, german

PARTS = {"train": range(0, 3000, 5), "valid": range(1, 400, 10), "test": range(2, 400, 10)}


def write_pairs(folder, languages=("en", "de"), parts=PARTS):
    folder.mkdir(parents=True, exist_ok=True)
    for part, numbers in parts.items():
        for language, words in zip(languages, (english, german), strict=True):
            text = "".join(f"{words(number)}\n" for number in numbers)
            (folder / f"{part}.{language}").write_text(text, encoding="utf-8")
    return folder


def write_text(folder):
    """Lines of eight mixed numbers each, with an empty line between."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, (start, stop) in {"train": (0, 480), "valid": (480, 560), "test": (560, 640)}.items():
        mixed = [english(7919 * place % 1000) for place in range(start, stop)]
        lines = [", ".join(mixed[first : first + 8]) for first in range(0, len(mixed), 8)]
        (folder / f"{part}.txt").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return folder
