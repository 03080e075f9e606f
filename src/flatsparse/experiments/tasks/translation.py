"""Translation: sentence pairs, the Transformer and BLEU."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flatsparse.experiments.data.sentences import Pairs, SentenceParts, digest_of
from flatsparse.experiments.data.split import Batch
from flatsparse.experiments.data.token_batches import Sequences, TokenLists, TokenSplit
from flatsparse.experiments.data.vocabulary import END, START, Vocabulary
from flatsparse.experiments.tasks.bleu import bleu, check_bleu
from flatsparse.experiments.tasks.decoding import BEAM, translate
from flatsparse.experiments.tasks.run_task import Evaluation
from flatsparse.experiments.tasks.sequences import Counts, NextToken, chosen_splits
from flatsparse.experiments.tasks.settings import Dataset
from flatsparse.models import TRANSLATION_MODELS
from flatsparse.models.transformer import Transformer

LONGEST = 256  # tokens of a training sentence; longer pairs are left out, those of the test are not


@dataclass(frozen=True, kw_only=True)
class Translation(NextToken):
    """Translating sentences; BLEU of greedy translations while training, and of a beam search on the test."""

    def logits(self, model: nn.Module, content: Sequences) -> Tensor:
        """Return the logits after each target token, given those before it."""
        logits: Tensor = model(content.source, content.target[:, :-1])
        return logits

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: Iterable[Batch], count: int, *, detailed: bool = False) -> Evaluation:
        """Return the mean loss of a token, BLEU and the accuracy of tokens; as a detail, BLEU's signature.

        Args:
            detailed: translate by beam search, as for published figures; otherwise greedily, in a fraction of the time.
        """
        counts = Counts()
        translations: list[str] = []
        references: list[str] = []
        for batch in batches:
            content: Sequences = batch.content
            counts.add(self.logits(model, content), content)
            assert content.source is not None
            assert isinstance(model, Transformer)
            found = translate(model, content.source, beam=BEAM if detailed else 1)
            translations += [self.vocabulary.decode(tokens) for tokens in found]
            references += content.texts
        score, signature = bleu(translations, references)
        return Evaluation(
            counts.mean_loss, {"BLEU": score, "token accuracy": counts.accuracy}, {"signature": signature}
        )


@dataclass(frozen=True)
class TokenPairs:
    """A set of sentence pairs as tokens.

    Attributes:
        pool: the training pairs that are not too long.
        fingerprint: a hash over all sentences and the vocabulary.
    """

    vocabulary: Vocabulary
    pool: TokenSplit
    validation: TokenSplit
    test: TokenSplit
    fingerprint: str
    notes: tuple[str, ...]


def encoded(parts: SentenceParts, learn: Callable[[list[str]], Vocabulary]) -> TokenPairs:
    """Return sentence pairs as tokens of a joint vocabulary.

    Args:
        learn: makes the vocabulary of the training sentences, those of the source and then those of the target.
    """
    vocabulary = learn([*parts.train.source, *parts.train.target])
    pool, validation, test = (_split(part, vocabulary) for part in (parts.train, parts.validation, parts.test))
    lengths = pool.target.lengths
    assert pool.source is not None
    kept = (lengths.maximum(pool.source.lengths) <= LONGEST).nonzero()[:, 0]
    left_out = len(pool) - len(kept)
    notes = (f"{left_out:,} training pairs of more than {LONGEST} tokens are left out",) if left_out else ()
    fingerprint = digest_of((parts.fingerprint, vocabulary.file.hex()))
    return TokenPairs(vocabulary, pool.subset(kept), validation, test, fingerprint, notes)


def _split(pairs: Pairs, vocabulary: Vocabulary) -> TokenSplit:
    source = TokenLists.of([[*tokens, END] for tokens in vocabulary.encode(pairs.source)])
    target = TokenLists.of([[START, *tokens, END] for tokens in vocabulary.encode(pairs.target)])
    return TokenSplit(target, source, torch.arange(len(pairs)), pairs.target)


def translation_task(
    parts: SentenceParts, tokens: TokenPairs, chosen: Dataset, *, model: str, seed: int, label_smoothing: float
) -> Translation:
    """Return the task of translating sentences; which are trained on follows the seed."""
    check_bleu()
    return Translation(
        name=parts.name,
        identity={"name": parts.name, "source": parts.source, "fingerprint": tokens.fingerprint},
        splits=chosen_splits(tokens.pool, tokens.validation, tokens.test, chosen, parts.name, seed),
        fresh=functools.partial(TRANSLATION_MODELS[model], len(tokens.vocabulary)),
        samples=f"sentences in {len(tokens.vocabulary):,} tokens",
        notes=tokens.notes,
        loss_name="cross-entropy of a token",
        vocabulary=tokens.vocabulary,
        network=model,
        label_smoothing=label_smoothing,
    )
