import itertools
import math

import pytest
import torch

from flatsparse.experiments.data.vocabulary import END, START
from flatsparse.experiments.tasks.decoding import beam_search, length_penalty, translate
from flatsparse.models import transformer_tiny

TINY = 6  # tokens: padding, start, end, unknown and two more


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    model = transformer_tiny(TINY).eval()
    with torch.no_grad():
        model.tokens.weight.mul_(4)  # so that probabilities differ
    return model


SOURCES = torch.tensor([[4, 5, 4, 2], [5, 2, 0, 0], [3, 4, 2, 0]])


def log_probability(model, source, tokens):
    """The sum of the log-probabilities of tokens, in one forward pass; padding and start cannot be said."""
    logits = model(source[None], torch.tensor([[START, *tokens[:-1]]]))[0]
    logits[:, [0, START]] = -math.inf
    return float(logits.log_softmax(-1)[range(len(tokens)), tokens].sum())


def exhaustive(model, source, penalty, longest):
    """The best of all whole lists."""
    lists = [[*tokens, END] for count in range(longest) for tokens in itertools.product((3, 4, 5), repeat=count)]
    return max(lists, key=lambda tokens: log_probability(model, source, tokens) / length_penalty(len(tokens), penalty))


@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
@torch.no_grad()
def test_a_wide_beam_finds_the_best_of_all(model, penalty):
    longest = 4
    found = translate(model, SOURCES, beam=200, penalty=penalty, longest=longest)
    assert found == [exhaustive(model, source, penalty, longest)[:-1] for source in SOURCES]


def greedy(model, source, longest):
    """The plain form: the most probable token, again and again, without a cache."""
    tokens = [START]
    while len(tokens) <= longest:
        logits = model(source[None], torch.tensor([tokens]))[0, -1]
        logits[[0, START]] = -math.inf
        tokens.append(int(logits.argmax()))
        if tokens[-1] == END:
            return tokens[1:-1]
    return tokens[1:]


@torch.no_grad()
def test_a_beam_of_one_is_greedy():
    torch.manual_seed(1)
    model = transformer_tiny(30).eval()
    source = torch.randint(4, 30, (20, 7))
    source[::2, 4:] = 0
    with torch.no_grad():
        model.tokens.weight[END] *= 1.5  # so that some end early
    found = translate(model, source, longest=10)
    assert found == [greedy(model, row, 10) for row in source]
    assert len(set(map(len, found))) > 1


@torch.no_grad()
def test_translations_do_not_depend_on_the_batch(model):
    for beam in (1, 3):
        together = translate(model, SOURCES, beam=beam, longest=6)
        alone = [translate(model, row[row != 0][None], beam=beam, longest=6)[0] for row in SOURCES]
        assert together == alone


def test_a_longer_list_wins_by_the_penalty_alone():
    """Of a net that says "3 3 end" with probability 0.4 and "end" with 0.5, which one is said follows α."""
    short, long = math.log(0.5), math.log(0.4)

    def advance(tokens, rows):
        logits = torch.full((len(tokens), 4), -math.inf)
        first = tokens == START
        logits[first, END], logits[first, 3] = short, long
        advance.said += 1
        logits[~first, END if advance.said > 2 else 3] = 0.0
        return logits

    for penalty, wanted in ((0.0, []), (2.0, [3, 3])):
        advance.said = 0
        assert beam_search(advance, 1, beam=2, penalty=penalty, longest=5) == [wanted]


def test_the_penalty_is_the_published_one():
    assert length_penalty(1, 0.6) == 1
    assert length_penalty(7, 0.6) == pytest.approx((12 / 6) ** 0.6)
