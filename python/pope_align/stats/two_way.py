"""Variances where observations are dependent in two ways: all of one prompt, and all of one annotator."""

from __future__ import annotations

import numpy as np

from .._arrays import Floats, Integers


def two_way_variance(influence: Floats, first: Integers, second: Integers) -> Floats:
    """``[P]`` variances of the sums of ``[N, P]`` contributions that share a first cluster, a second, or both.

    ``V = V_first + V_second - V_both`` with ``V_c = C / (C - 1) sum_c (sum_{n in c} psi_n)^2``, where ``both`` are the
    pairs that occur. The difference may be below the variance by one of the clusters alone, or even below 0; then the
    greater of these is used.

    Args:
        influence: of each observation, with mean 0: the first-order contribution to the estimate.
        first, second: ``[N]`` codes from 0; at least two of each.

    Raises:
        ValueError: only one cluster.

    Source: Cameron, Gelbach and Miller, "Robust inference with multiway clustering" (2011), Eqs. 2.11 to 2.13.
    """
    one, other = _variance(influence, first, "first"), _variance(influence, second, "second")
    pairs = np.unique(np.stack([first, second], axis=1), axis=0, return_inverse=True)[1].reshape(-1)
    both = _variance(influence, pairs.astype(np.int64), "pairs")
    return np.asarray(np.maximum(one + other - both, np.maximum(one, other)))


def one_way_variance(influence: Floats, clusters: Integers) -> Floats:
    """``[P]`` variances of the sums of ``[N, P]`` contributions that share a cluster.

    Raises:
        ValueError: only one cluster.
    """
    return _variance(influence, clusters, "clusters")


def _variance(influence: Floats, codes: Integers, name: str) -> Floats:
    present, codes = np.unique(codes, return_inverse=True)
    count = present.size
    if count < 2:
        raise ValueError(f"{name}: expected at least two clusters, got {count}")
    sums = np.stack([np.bincount(codes.reshape(-1), column, count) for column in influence.T], axis=1)
    return np.asarray(np.square(sums).sum(0) * (count / (count - 1)))
