"""Sums of ratios over clusters: the common form of all estimates, from which their uncertainty is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .._arrays import Floats
from .bootstrap import Resampling, resampled_sums


class RatioEstimate(Protocol):
    """What intervals and comparisons ask of an estimate: `Ratios`, which holds every cluster, or `RatioSums`, which
    holds their sums.
    """

    @property
    def num_clusters(self) -> int: ...
    def values(self) -> Floats: ...
    def covariance(self) -> Floats: ...
    def combine(self, matrix: Floats) -> Any: ...
    def minus(self, other: Any) -> Any: ...
    def draws(self, resampling: Resampling, count: int, seed: int) -> Floats: ...
    def probability_positive(self, draws: int, seed: int) -> float: ...


@dataclass(frozen=True, eq=False)
class Ratios:
    """``V_p = sum_t [ sum_c numerators[t, c, p] / sum_c denominators[t, c] ]`` over independent clusters ``c``.

    A mean has one term with the counts as denominators, a self-normalised estimator one with the weights, a doubly
    robust one two terms, a difference of policies the terms of both. Columns ``p`` are parts of the value; they share
    the denominators.
    """

    numerators: Floats  # [T, C, P]
    denominators: Floats  # [T, C]

    @property
    def num_clusters(self) -> int:
        return int(self.denominators.shape[1])

    def values(self) -> Floats:
        """``[P]``."""
        return np.asarray((self.numerators.sum(1) / self.denominators.sum(1)[:, None]).sum(0))

    def influence(self) -> Floats:
        """``[C, P]`` the contribution of each cluster to ``V - E V``, to first order (the delta method)."""
        total = self.denominators.sum(1)[:, None]  # [T, 1]
        each = self.numerators.sum(1) / total  # [T, P]
        centred = self.numerators - each[:, None, :] * self.denominators[:, :, None]
        return np.asarray((centred / total[:, :, None]).sum(0))

    def covariance(self) -> Floats:
        """``[P, P]`` of the values: ``C / (C - 1) sum_c psi_c psi_c^T``, cluster-robust."""
        influence = self.influence()
        return np.asarray(influence.T @ influence) * (self.num_clusters / (self.num_clusters - 1))

    def combine(self, matrix: Floats) -> Ratios:
        """Linear combinations ``[P, P']`` of the columns."""
        return Ratios(self.numerators @ matrix, self.denominators)

    def minus(self, other: Ratios) -> Ratios:
        """The difference of two statistics of the same clusters: paired, because a draw resamples both at once."""
        return self.plus(Ratios(-other.numerators, other.denominators))

    def plus(self, other: Ratios) -> Ratios:
        """The sum of two statistics of the same clusters, paired."""
        if other.num_clusters != self.num_clusters:
            raise ValueError(
                f"other: expected the same {self.num_clusters} clusters, got {other.num_clusters}; "
                "only estimates from one log can be compared in pairs"
            )
        return Ratios(
            np.concatenate([self.numerators, other.numerators]),
            np.concatenate([self.denominators, other.denominators]),
        )

    def draws(self, resampling: Resampling, count: int, seed: int) -> Floats:
        """``[count, P]`` values of resampled logs; every ratio is recomputed in every draw."""
        terms, clusters, parts = self.numerators.shape
        columns = np.concatenate(
            [self.numerators.transpose(1, 0, 2).reshape(clusters, terms * parts), self.denominators.T], axis=1
        )  # [C, T P + T]
        sums = resampled_sums(columns, resampling, count, seed)
        numerators = sums[:, : terms * parts].reshape(count, terms, parts)
        denominators = sums[:, terms * parts :]  # [count, T]
        return np.asarray((numerators / denominators[:, :, None]).sum(1))

    def probability_positive(self, draws: int, seed: int) -> float:
        """The probability that the first value is above 0, under the Bayesian bootstrap; a draw of 0 counts half."""
        values = self.draws("bayesian", draws, seed)[:, 0]
        return float((values > 0).mean() + (values == 0).mean() / 2)
