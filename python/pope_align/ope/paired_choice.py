"""Chooses among estimates of one quantity: the least estimated squared error, from paired standard errors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..stats.ratios import Ratios


def least_error(candidates: Sequence[Ratios]) -> int:
    """The index with the least ``bias^2 + variance``, where candidates come from least to most biased.

    The bias of a candidate is its largest difference from an earlier one, minus what noise explains of it::

        bias_i = max_{j < i} max(0, |V_i - V_j| - error(V_i - V_j))

    The error of a difference is paired by cluster, so that noise shared by two candidates does not hide a bias, as it
    would if intervals were compared.

    Args:
        candidates: each with one column, normally with decreasing variance.

    Raises:
        ValueError: no candidate is finite.
    """
    values = [float(each.values()[0]) for each in candidates]
    errors = []
    for i, candidate in enumerate(candidates):
        variance = float(candidate.covariance()[0, 0])
        bias = 0.0
        for j in range(i):
            noise = float(np.sqrt(candidate.minus(candidates[j]).covariance()[0, 0]))
            bias = max(bias, abs(values[i] - values[j]) - noise)
        errors.append(bias**2 + variance)
    if not np.isfinite(errors).any():
        raise ValueError(f"candidates: expected at least one finite estimate, got {values}")
    return int(np.nanargmin(np.where(np.isfinite(errors), errors, np.inf)))
