"""`RatioSums`: `Ratios` of which only the sums over clusters are known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .._arrays import Floats
from .bootstrap import Resampling
from .moments import Moments


@dataclass(frozen=True, eq=False)
class RatioSums:
    """``V_p = sum_t [ sum_c numerators[t, c, p] / sum_c denominators[t, c] ]`` from the moments of clusters.

    Numerators and denominators are linear in the columns of ``moments``. Statistics of one log share its moments, which
    hold all cross-products, so that differences are paired.
    """

    moments: Moments  # [K] columns, one row per cluster
    numerators: Floats  # [T, P, K]
    denominators: Floats  # [T, K]

    @classmethod
    def of(cls, moments: Moments, numerators: list[int], denominator: int) -> RatioSums:
        """One ratio: these columns over that one."""
        one = np.eye(moments.totals.size)
        return cls(moments, one[numerators][None], one[denominator][None])

    @property
    def num_clusters(self) -> int:
        return self.moments.count

    @property
    def _used(self) -> npt.NDArray[np.int64]:
        """The columns that take part: another one may hold infinities, which times 0 are NaN."""
        return np.flatnonzero(self.numerators.any((0, 1)) | self.denominators.any(0))

    def _terms(self, sums: Floats) -> tuple[Floats, Floats]:
        """``[..., K]`` sums of columns to ``[..., T, P]`` numerators and ``[..., T]`` denominators."""
        used = self._used
        numerators = np.einsum("...k,tpk->...tp", sums[..., used], self.numerators[..., used])
        return numerators, np.einsum("...k,tk->...t", sums[..., used], self.denominators[..., used])

    def values(self) -> Floats:
        """``[P]``."""
        numerators, denominators = self._terms(self.moments.totals)
        return np.asarray((numerators / denominators[:, None]).sum(0))

    def covariance(self) -> Floats:
        """``[P, P]`` of the values: ``C / (C - 1) sum_c psi_c psi_c^T``, cluster-robust, by the delta method.

        The influence ``psi`` of a cluster is linear in its columns and its mean is 0, so centred moments suffice.
        """
        numerators, denominators = self._terms(self.moments.totals)
        each = numerators / denominators[:, None]  # [T, P]
        used, gradient = self._used, np.zeros(self.numerators.shape[1:])
        linear = self.numerators[..., used] - each[..., None] * self.denominators[:, None, used]
        gradient[:, used] = (linear / denominators[:, None, None]).sum(0)
        return self.moments.covariance(gradient) * (self.num_clusters / (self.num_clusters - 1))

    def combine(self, matrix: Floats) -> RatioSums:
        """Linear combinations ``[P, P']`` of the values."""
        return RatioSums(self.moments, np.einsum("tpk,pq->tqk", self.numerators, matrix), self.denominators)

    def minus(self, other: RatioSums) -> RatioSums:
        """The paired difference of two statistics of one log."""
        if other.moments is not self.moments:
            raise ValueError("other: expected an estimate from the same pass over the log")
        return RatioSums(
            self.moments,
            np.concatenate([self.numerators, -other.numerators]),
            np.concatenate([self.denominators, other.denominators]),
        )

    def draws(self, resampling: Resampling, count: int, seed: int) -> Floats:
        """``[count, P]`` values of resampled logs.

        Raises:
            ValueError: the log was not resampled in this way when it was read.
        """
        made, replicates = self.moments.bootstrap, self.moments.replicates
        if made is None or replicates is None or (made.resampling, made.draws, made.seed) != (resampling, count, seed):
            raise ValueError(f"method: {resampling!r} with {count} draws was not asked for before the log was read")
        numerators, denominators = self._terms(replicates)
        return np.asarray((numerators / denominators[..., None]).sum(1))

    def probability_positive(self, draws: int, seed: int) -> float:
        """The probability that the first value is above 0: under the Bayesian bootstrap if the log was resampled so,
        else its limit for many clusters, a normal distribution.
        """
        made = self.moments.bootstrap
        if made is not None and (made.resampling, made.draws, made.seed) == ("bayesian", draws, seed):
            values = self.draws("bayesian", draws, seed)[:, 0]
            return float((values > 0).mean() + (values == 0).mean() / 2)
        value, error = float(self.values()[0]), math.sqrt(float(self.covariance()[0, 0]))
        if error == 0:
            return 0.5 if value == 0 else float(value > 0)
        return math.erfc(-value / error / math.sqrt(2)) / 2
