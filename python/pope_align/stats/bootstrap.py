"""Resampling of clusters: their multiplicities in every draw, and the resampled sums."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from .._arrays import Floats

#: "bootstrap" draws C clusters with replacement; "bayesian" gives them Dirichlet(1, ..., 1) weights.
Resampling = Literal["bootstrap", "bayesian"]

#: Size of a block of multiplicities: 32 MiB of float64.
_BLOCK = 4 * 1024 * 1024


def resampled_sums(columns: Floats, resampling: Resampling, draws: int, seed: int) -> Floats:
    """``[C, K] -> [draws, K]``: the sum of every column over each resampled set of clusters.

    Equal seeds resample the same clusters, so that sums of one log under two policies are paired.
    """
    blocks = _multiplicities(resampling, len(columns), draws, seed)
    return np.concatenate([weights @ columns for weights in blocks])


def _multiplicities(resampling: Resampling, clusters: int, draws: int, seed: int) -> Iterator[Floats]:
    """Blocks ``[b, C]`` of multiplicities of clusters, ``draws`` rows in total; independent of the block size."""
    random = np.random.default_rng(seed)
    rows = max(1, _BLOCK // clusters)
    for start in range(0, draws, rows):
        size = min(rows, draws - start)
        if resampling == "bayesian":
            yield random.standard_exponential((size, clusters))
        else:
            chosen = random.integers(0, clusters, (size, clusters))
            chosen += (np.arange(size) * clusters)[:, None]
            counts = np.bincount(chosen.reshape(-1), minlength=size * clusters)
            yield counts.reshape(size, clusters).astype(np.float64)
