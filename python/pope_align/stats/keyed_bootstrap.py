"""Resampling of clusters that are never together in memory: a hash of the name of each says how often it is drawn."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from .._arrays import Floats
from .bootstrap import Resampling

Hashes = npt.NDArray[np.uint64]

#: Clusters whose multiplicities are held at once: for 1,000 draws 4 MiB of float64, which stays in a cache.
_BLOCK = 512

#: Increment of the SplitMix64 generator.
_STEP = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class KeyedBootstrap:
    """The Poisson bootstrap, or its Bayesian form, with draws that depend on the name of a cluster and nothing else.

    A cluster has the same multiplicity whenever and wherever it is read, so sums of shards can be added in any order,
    and two policies or two runs are resampled alike. The multiplicities of the bootstrap over C clusters are those of
    a multinomial distribution, which for large C are independent Poisson(1) numbers; Dirichlet weights are independent
    exponential ones, divided by their sum.

    Source: Chamandy, Muralidharan, Najmi and Naidu, "Estimating uncertainty for massive data streams" (2012).
    """

    resampling: Resampling
    draws: int
    seed: int = 0

    def sums(self, rows: Floats, keys: Hashes) -> Floats:
        """``[draws, K]`` sums over the resampled clusters of ``rows [K, C]``."""
        result = np.zeros((self.draws, len(rows)))
        at = 0
        for block in self.multiplicities(keys):
            with np.errstate(invalid="ignore"):  # 0 times an infinite number
                result += block.T @ rows[:, at : at + len(block)].T
            at += len(block)
        return result

    def multiplicities(self, keys: Hashes) -> Iterator[Floats]:
        """Blocks ``[b, draws]`` for the clusters with these hashes, in order."""
        table = _poisson() if self.resampling == "bootstrap" else _exponential()
        counter = np.arange(1, math.ceil(self.draws / 4) + 1, dtype=np.uint64) * _STEP
        seed = mix(np.array([self.seed % 2**64], dtype=np.uint64))
        for start in range(0, keys.size, _BLOCK):
            states = mix(keys[start : start + _BLOCK] ^ seed)
            drawn = mix(states[:, None] + counter).view(np.uint16)  # four numbers of 16 bits from each of 64
            yield table[drawn[:, : self.draws]]


@cache
def _poisson() -> Floats:
    """``[65536]`` quantiles of Poisson(1) at (i + 1/2) / 65536: probabilities to 1e-5."""
    steps = np.cumsum([math.exp(-1) / math.factorial(count) for count in range(12)])
    return np.searchsorted(steps, (np.arange(65536) + 0.5) / 65536).astype(np.float64)


@cache
def _exponential() -> Floats:
    """``[65536]`` quantiles of the exponential distribution of mean 1."""
    return np.asarray(-np.log((np.arange(65536) + 0.5) / 65536))


def mix(values: Hashes) -> Hashes:
    """The finaliser of SplitMix64: every bit of the input changes half of the output's."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(values ^ (values >> np.uint64(31)))


def hashes_of(ids: Sequence[str | int]) -> Hashes:
    """``[C]`` hashes of names, the same on every machine; the number 1 and the text "1" differ."""
    if len(ids) and isinstance(ids[0], str):
        digests = b"".join(hashlib.blake2b(str(each).encode(), digest_size=8).digest() for each in ids)
        return np.frombuffer(digests, dtype="<u8").astype(np.uint64)
    return mix(np.asarray(ids, dtype=np.int64).astype(np.uint64) + _STEP)
