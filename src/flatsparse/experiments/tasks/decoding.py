"""Beam search with a Transformer's decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flatsparse.experiments.data.vocabulary import END, PADDING, START
from flatsparse.models.transformer import DecoderCache, Transformer

LONGER = 50  # tokens that a translation may have more than its source (Vaswani et al. 2017, sec. 6.1)
LONGER_THAN_TWICE = (
    10  # and than two of its source, which is less for short ones (ours, because a poor net says no end)
)
BEAM, PENALTY = 4, 0.6  # as there


def translate(
    model: Transformer, source: Tensor, *, beam: int = 1, penalty: float = PENALTY, longest: int | None = None
) -> list[list[int]]:
    """Return the tokens of the translation of each source, without start and end.

    Args:
        model: in evaluation mode.
        source: token numbers (N, source length), padded.
        beam: translations that are kept at each length; 1 is greedy.
        penalty: α of the length penalty, see ``length_penalty``.
        longest: tokens of a translation, with its end. By default up to 50 more than the longest source.
    """
    width = source.shape[1]
    longest = min(width + LONGER, 2 * width + LONGER_THAN_TWICE) if longest is None else longest
    memory, cache = model.encode(source).select(repeated(len(source), beam, source.device)), DecoderCache(model)

    def advance(tokens: Tensor, rows: Tensor | None) -> Tensor:
        nonlocal memory
        if rows is not None:
            cache.select(rows)
            memory = memory.select(rows)
        return model.decode(tokens[:, None], memory, cache)[:, -1]

    return beam_search(advance, len(source), beam=beam, penalty=penalty, longest=longest, device=source.device)


def repeated(count: int, beam: int, device: Any) -> Tensor:
    """Return each row number ``beam`` times."""
    return torch.arange(count, device=device).repeat_interleave(beam)


def length_penalty(length: int, penalty: float) -> float:
    """Return what the log-probability of a translation is divided by, ((5 + length) / 6)^α (Wu et al. 2016, eq. 14)."""
    return float(((5 + length) / 6) ** penalty)


@dataclass
class _Found:
    """The best whole list of a source so far, and how many there were."""

    score: float = -float("inf")
    tokens: tuple[int, ...] = ()
    count: int = 0


def beam_search(
    advance: Callable[[Tensor, Tensor | None], Tensor],
    count: int,
    *,
    beam: int,
    penalty: float,
    longest: int,
    device: Any = "cpu",
) -> list[list[int]]:
    """Return the list of tokens of each source with the highest log-probability over length penalty that a beam search meets.

    A list is whole when its end is among the ``beam`` most probable continuations of its source. A source is done when it has as
    many whole lists, or when none in its beam could be better than the best of them: a log-probability never rises. Without
    a whole one at the greatest length, the most probable is cut there.

    Args:
        advance: returns the logits (rows, vocabulary) after a further token (rows) of each row. Its second argument says
            which of its rows go on, in order; None for all as they are. At first there are ``beam`` rows a source.
        count: the number of sources.
        longest: tokens of a list, with its end.
    """
    found = [_Found() for _ in range(count)]
    alive = list(range(count))  # the sources that are not done
    scores = torch.full((count, beam), -float("inf"), device=device)
    scores[:, 0] = 0.0  # all rows of a source are equal at first
    lists = torch.full((count, beam, 1), START, device=device)
    rows: Tensor | None = None
    for length in range(1, longest + 1):
        logits = advance(lists[:, :, -1].flatten(), rows).float()
        logits[:, [PADDING, START]] = -float("inf")  # are never said
        extended = (scores[:, :, None] + logits.log_softmax(-1).unflatten(0, (-1, beam))).flatten(1)
        top, chosen = extended.topk(2 * beam)  # of which at most half are ends
        parents, tokens = chosen // logits.shape[-1], chosen % logits.shape[-1]
        ends = tokens == END
        _note(found, alive, (top / length_penalty(length, penalty)), ends, lists, parents, beam)
        going_on = ends.long().argsort(dim=1, stable=True)[:, :beam]
        scores, parents, tokens = (each.gather(1, going_on) for each in (top, parents, tokens))
        lists = torch.cat([lists.gather(1, parents[:, :, None].expand(-1, -1, length)), tokens[:, :, None]], 2)
        bound = (scores[:, 0] / length_penalty(longest, penalty)).tolist()
        going = [n for n, source in enumerate(alive) if found[source].count < beam and bound[n] > found[source].score]
        rows = (torch.arange(len(alive), device=device)[:, None] * beam + parents)[going].flatten()
        rows = None if len(going) == len(alive) and beam == 1 else rows
        scores, lists, alive = scores[going], lists[going], [alive[n] for n in going]
        if not alive:
            break
    for n, source in enumerate(alive):
        if not found[source].count:
            found[source].tokens = tuple(lists[n, 0, 1:].tolist())
    return [list(one.tokens) for one in found]


def _note(
    found: list[_Found], alive: list[int], top: Tensor, ends: Tensor, lists: Tensor, parents: Tensor, beam: int
) -> None:
    """Count the lists that end now, and keep those that are better than the best before."""
    whole = ends[:, :beam] & top[:, :beam].isfinite()
    for n, column in whole.nonzero().tolist():
        one, score = found[alive[n]], float(top[n, column])
        one.count += 1
        if score > one.score:
            one.score, one.tokens = score, tuple(lists[n, parents[n, column], 1:].tolist())
