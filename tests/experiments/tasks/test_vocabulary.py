import pytest

from flatsparse.common.errors import InputError
from flatsparse.experiments.data import vocabulary
from flatsparse.experiments.data.number_words import english, german
from flatsparse.experiments.data.vocabulary import END, PADDING, START, UNKNOWN, learn_subwords, learn_words
from flatsparse.experiments.run.config import RunConfig, change
from flatsparse.experiments.run.resolve import resolve
from flatsparse.experiments.tasks.make import make_task
from tests.experiments.tasks.texts import PARTS, write_pairs

TEXTS = [*map(english, range(600)), *map(german, range(600))]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The user's cache, for one test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "flatsparse"


def test_words_come_back_and_others_are_unknown():
    words = learn_words(["two and twenty-one", "one"])
    assert words.words == ("<pad>", "<start>", "<end>", "<unk>", "-", "and", "one", "twenty", "two")
    [tokens] = words.encode(["twenty and four"])
    assert tokens == [7, 5, UNKNOWN]
    assert words.decode([START, *tokens[:2], END, PADDING]) == "twenty and"


def test_subwords_come_back_as_they_were_written():
    learned = learn_subwords(TEXTS, 100)
    assert len(learned) == 100
    for text in ("neun hundert ein und dreißig", "forty-two thousand", "tausend zwei"):
        [tokens] = learned.encode([text])
        assert min(tokens) > UNKNOWN
        assert learned.decode([START, *tokens, END, PADDING]) == text


def test_equal_texts_have_equal_vocabularies_whether_kept_or_learned_again(cache, monkeypatch):
    first = learn_subwords(TEXTS, 100)
    [kept] = cache.glob("subwords-*")
    with monkeypatch.context() as patch:
        patch.setattr(vocabulary, "_learned", None)  # which cannot be called
        assert learn_subwords(TEXTS, 100) == first
    kept.write_bytes(kept.read_bytes()[:-1] + b"?")  # damaged: learned again, and kept whole
    assert learn_subwords(TEXTS, 100) == first
    kept.unlink()
    assert learn_subwords(TEXTS, 100) == first
    assert learn_subwords(TEXTS[600:], 100) != first
    assert len(learn_subwords(TEXTS, 101)) == 101


def test_a_vocabulary_needs_no_cache(cache):
    cache.parent.write_text("a file where the folder should be")
    assert len(learn_subwords(TEXTS, 100)) == 100


def test_a_vocabulary_is_learned_from_the_training_text_alone(tmp_path):
    run = resolve(RunConfig.of(data=str(write_pairs(tmp_path / "one")), vocabulary=90))
    other = write_pairs(tmp_path / "two", parts={**PARTS, "valid": [77_777, 88_888], "test": range(90_000, 90_100)})
    tasks = [
        make_task(chosen.dataset, model=run.model, seed=0, label_noise=0.0, label_smoothing=0.0)
        for chosen in (run, change(run, data=str(other)))
    ]
    assert tasks[0].vocabulary.file == tasks[1].vocabulary.file
    assert tasks[0].identity["fingerprint"] != tasks[1].identity["fingerprint"]
    assert [len(task.splits.test) for task in tasks] == [len(PARTS["test"]), 100]


def test_a_vocabulary_that_is_too_large_gets_one_line():
    with pytest.raises(InputError, match=r"--vocabulary 5000 cannot be learned from 1,200 lines") as caught:
        learn_subwords(TEXTS, 5000)
    assert "\n" not in str(caught.value)


def test_long_texts_are_read_in_part_but_evenly(monkeypatch):
    monkeypatch.setattr(vocabulary, "SENTENCES", 700)
    assert learn_subwords(TEXTS, 90) == learn_subwords(TEXTS[::2], 90)
