"""Lexical metrics: words, Distinct-n and its length-corrected form, Self-BLEU."""

from __future__ import annotations

import functools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

Words = Sequence[str]


def words(text: str) -> list[str]:
    r"""Lower-cased words and other symbols of a text in Unicode's composed form (NFC).

    For ASCII ``re.findall(r"\w+|[^\w\s]", text.lower())``. Otherwise combining marks, joiners and skin colours belong
    to the letter or symbol before them; symbols connected by joiners, and the two letters of a flag, are one symbol. A
    script without spaces (Chinese, Japanese, Thai) gives whole phrases and needs its own tokenizer; all metrics here
    take tokens.
    """
    lowered = text.lower()
    if lowered.isascii():
        return re.findall(r"\w+|[^\w\s]", lowered)
    return _signs().findall(unicodedata.normalize("NFC", lowered))


@functools.cache
def _signs() -> re.Pattern[str]:
    """`words` for text beyond ASCII. All marks are in these two ranges of code points."""
    points = (*range(0x300, 0x20000), *range(0xE0100, 0xE01F0))
    marks = "".join(char for char in map(chr, points) if unicodedata.category(char).startswith("M"))
    follows = f"{marks}\u200c\u200d\U0001f3fb-\U0001f3ff"
    tied = f"(?:(?<=\u200d)[^\\w\\s]|[{follows}])*"
    return re.compile(f"\\w[\\w{marks}\u200c\u200d]*|[\U0001f1e6-\U0001f1ff]{{2}}|[^\\w\\s]{tied}")


def distinct_n(texts: Sequence[Words], n: int) -> float:
    """Distinct-n (Li et al. 2016): different n-grams over all n-grams, pooled over the texts.

    In (0, 1], higher is more diverse; shown times 100. It falls with the number of words, so compare sets of similar
    size, or use `expectation_adjusted_distinct`. NaN if no text has an n-gram. N-grams do not cross texts.

    Raises:
        ValueError: ``n < 1``.
    """
    if n < 1:
        raise ValueError(f"n: expected an integer >= 1, got {n}")
    counts = Counter(gram for tokens in texts for gram in _ngrams(tokens, n))
    return len(counts) / counts.total() if counts else float("nan")


def expectation_adjusted_distinct(texts: Sequence[Words], vocabulary_size: int) -> float:
    """EAD (Liu et al. 2022): different words over the number expected of as many draws from a uniform vocabulary.

    ``N / (V (1 - ((V - 1) / V)^C))``, with ``N`` different of ``C`` words and vocabulary size ``V``. At least 0, may
    exceed 1; higher is more diverse, independently of length. NaN without words.

    Raises:
        ValueError: ``vocabulary_size < 1``.
    """
    if vocabulary_size < 1:
        raise ValueError(f"vocabulary_size: expected an integer >= 1, got {vocabulary_size}")
    counts = Counter(token for tokens in texts for token in tokens)
    if not counts:
        return float("nan")
    if vocabulary_size == 1:
        return float(len(counts))
    log_missed = counts.total() * math.log1p(-1 / vocabulary_size)
    return len(counts) / (-vocabulary_size * math.expm1(log_missed))


def self_bleu(texts: Sequence[Words], n: int = 4) -> float:
    """Self-BLEU-n (Zhu et al. 2018): the mean over texts of BLEU-n with all other texts as references.

    In [0, 1]; 1: every text is in the others; *lower* is more diverse. Equal to the mean of NLTK's
    ``sentence_bleu(others, text, weights=[1/n] * n, smoothing_function=SmoothingFunction().method1)`` for every text.
    NaN for fewer than two texts. See `self_bleu_per_text`.
    """
    each = self_bleu_per_text(texts, n)
    return math.fsum(each) / len(each) if len(each) > 1 else float("nan")


def self_bleu_per_text(texts: Sequence[Words], n: int = 4) -> list[float]:
    """BLEU-n of every text against all others, uniform weights, NLTK's method1 smoothing.

    The n-grams of every text are counted once. For each n-gram the two highest counts over the texts are kept, which
    gives the highest among the *others* directly: the work grows with the number of words, not of pairs of texts.

    A text without words has 0. NaN for a single text, which has no others.

    Raises:
        ValueError: ``n < 1``.
    """
    if n < 1:
        raise ValueError(f"n: expected an integer >= 1, got {n}")
    if len(texts) < 2:
        return [float("nan")] * len(texts)
    log_precisions = [0.0] * len(texts)
    common = [0] * len(texts)  # clipped unigram matches: without one NLTK's BLEU is 0
    for order in range(1, n + 1):
        counted = [Counter(_ngrams(tokens, order)) for tokens in texts]
        top = _highest_two(counted)
        for index, counts in enumerate(counted):
            matches = 0
            for gram, count in counts.items():
                best = top[gram]
                others = best.second if best.owner == index else best.first
                matches += count if count < others else others
            if order == 1:
                common[index] = matches
            total = max(counts.total(), 1)
            log_precisions[index] += math.log((matches or 0.1) / total)  # method1: 0.1 in place of no match
    lengths = Counter(map(len, texts))
    return [
        _brevity(len(tokens), lengths) * math.exp(log_precisions[index] / n) if common[index] else 0.0
        for index, tokens in enumerate(texts)
    ]


class _Highest(NamedTuple):
    """The highest count of an n-gram in one text, the index of that text, and the highest count in the others."""

    first: int
    owner: int
    second: int


def _highest_two(counted: Sequence[Counter[tuple[str, ...]]]) -> dict[tuple[str, ...], _Highest]:
    top: dict[tuple[str, ...], _Highest] = {}
    for index, counts in enumerate(counted):
        for gram, count in counts.items():
            known = top.get(gram)
            if known is None:
                top[gram] = _Highest(count, index, 0)
            elif count > known.first:
                top[gram] = _Highest(count, index, known.first)
            elif count > known.second:
                top[gram] = _Highest(known.first, known.owner, count)
    return top


def _brevity(length: int, lengths: Counter[int]) -> float:
    """BLEU's penalty against the other text that is closest in length (the shorter of two as close)."""
    others = (other for other, count in lengths.items() if other != length or count > 1)
    closest = min(others, key=lambda other: (abs(other - length), other))
    return 1.0 if length > closest else math.exp(1 - closest / length) if length else 0.0


def _ngrams(tokens: Words, n: int) -> Iterator[tuple[str, ...]]:
    return zip(*(tokens[start:] for start in range(n)))
