"""BLEU as SacreBLEU counts it."""

from __future__ import annotations

from collections.abc import Sequence

from flatsparse.common.errors import InputError


def check_bleu() -> None:
    """Raise InputError where SacreBLEU is not installed."""
    try:
        import sacrebleu  # noqa: F401
    except ImportError:
        raise InputError("BLEU needs sacrebleu, which is not installed: pip install 'flatsparse[text]'") from None


def bleu(translations: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """Return the BLEU of a corpus, 0 to 100, and the signature of how it was counted (Post 2018).

    >>> score, signature = bleu(["one two three four five"], ["one two three four five"])
    >>> round(score, 3), signature.split("|")[:2]
    (100.0, ['nrefs:1', 'case:mixed'])
    """
    import sacrebleu

    metric = sacrebleu.BLEU()
    score = metric.corpus_score(list(translations), [list(references)]).score
    return float(score), str(metric.get_signature())
