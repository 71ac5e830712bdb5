"""Texts that are nearly the same, found without comparing all pairs: MinHash and bands (Broder 1997)."""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

#: Least share of common word triples from which two texts count as nearly the same.
NEAR = 0.8

_BANDS, _ROWS = 16, 4  # texts with 80% common triples share a band with probability 1 - (1 - .8^4)^16 = .9998
_PRIME = (1 << 31) - 1
_WORD = re.compile(r"\w+")

Shingles = npt.NDArray[np.uint64]


def near_duplicates(texts: Sequence[str], others: Iterable[str], *, threshold: float = NEAR) -> list[bool]:
    """Whether each text is nearly one of the others: the Jaccard similarity of their word triples is at least
    ``threshold``.

    Case and punctuation are ignored. Equal texts count as nearly the same, and so do any two texts without words.
    """
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    known: list[frozenset[int]] = []
    for other in dict.fromkeys(others):
        shingles = _shingles(other)
        for band in _bands(shingles):
            buckets[band].append(len(known))
        known.append(shingles)

    def near(shingles: frozenset[int]) -> bool:
        candidates = {index for band in _bands(shingles) for index in buckets.get(band, ())}
        return any(_jaccard(shingles, known[index]) >= threshold for index in candidates)

    return [near(_shingles(text)) for text in texts]


def _shingles(text: str) -> frozenset[int]:
    words = _WORD.findall(text.casefold())
    triples = zip(words, words[1:], words[2:]) if len(words) > 2 else [tuple(words)]
    return frozenset(zlib.crc32(" ".join(triple).encode("utf-8", "replace")) for triple in triples)


def _bands(shingles: frozenset[int]) -> list[tuple[int, bytes]]:
    """The MinHash signature of a set, in bands."""
    values = np.fromiter(shingles, dtype=np.uint64, count=len(shingles)) % _PRIME
    smallest = ((values[:, None] * _FACTORS + _TERMS) % _PRIME).min(0)
    return [(band, smallest[band * _ROWS : (band + 1) * _ROWS].tobytes()) for band in range(_BANDS)]


def _jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    return len(one & other) / len(one | other)


_random = np.random.Generator(np.random.PCG64(0))  # does not change the global random state
_FACTORS = _random.integers(1, _PRIME, _BANDS * _ROWS, dtype=np.uint64)
_TERMS = _random.integers(0, _PRIME, _BANDS * _ROWS, dtype=np.uint64)
