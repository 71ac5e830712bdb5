"""`Moments`: the count, sums and centred second moments of rows of numbers, which can be merged in any order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .._arrays import Floats
from .keyed_bootstrap import KeyedBootstrap


@dataclass(frozen=True, eq=False)
class Moments:
    """What a mean, a variance and a covariance need of ``N`` rows of ``K`` numbers.

    A column may be in units of ``exp(scale)``, so that weights of e^1000 and e^-1000 can be added: the greater scale of
    two parts becomes that of both. A scale of -inf marks a column that is 0.

    Attributes:
        count: N.
        scales: ``[K]`` logarithms of the units.
        totals: ``[K]`` sums.
        second: ``[K, K]`` ``sum_n (x_n - mean)(x_n - mean)^T``.
        bootstrap: the resampling whose sums are in ``replicates``; None: none.
        replicates: ``[draws, K]`` sums over the rows of every resampled log.
    """

    count: int
    scales: Floats
    totals: Floats
    second: Floats
    bootstrap: KeyedBootstrap | None = None
    replicates: Floats | None = None

    @classmethod
    def nothing(cls, columns: int, bootstrap: KeyedBootstrap | None = None) -> Moments:
        """Of no rows."""
        replicates = None if bootstrap is None else np.zeros((bootstrap.draws, columns))
        zeros = np.zeros(columns)
        return cls(0, np.full(columns, -np.inf), zeros, np.zeros((columns, columns)), bootstrap, replicates)

    @classmethod
    def of(
        cls,
        rows: Floats,
        scales: Floats,
        bootstrap: KeyedBootstrap | None = None,
        keys: npt.NDArray[np.uint64] | None = None,
    ) -> Moments:
        """Of ``[K, N]`` rows that are at hand, column by column.

        Args:
            scales: ``[K]``; 0 for plain numbers.
            bootstrap, keys: the resampling, and ``[N]`` hashes by which it recognises a row.
        """
        totals = rows.sum(1)  # pairwise, because a column is contiguous
        with np.errstate(invalid="ignore"):  # of a column with infinite numbers, which stays alone with it
            centred = rows - (totals / rows.shape[1])[:, None]
            second = centred @ centred.T
        replicates = None
        if bootstrap is not None:
            assert keys is not None
            replicates = bootstrap.sums(rows, keys)
        return cls(rows.shape[1], scales, totals, second, bootstrap, replicates)

    def merge(self, other: Moments) -> Moments:
        """Of the rows of both (Chan, Golub and LeVeque, 1979)."""
        if self.count == 0 or other.count == 0:
            return other if self.count == 0 else self
        if self.bootstrap != other.bootstrap or self.totals.shape != other.totals.shape:
            raise ValueError("other: expected moments of the same columns and resampling")
        scales = np.maximum(self.scales, other.scales)
        mine, theirs = self._in_units_of(scales), other._in_units_of(scales)
        count = mine.count + theirs.count
        with np.errstate(invalid="ignore"):
            apart = theirs.totals / theirs.count - mine.totals / mine.count
            between = np.outer(apart, apart) * (mine.count * theirs.count / count)
            both = None if mine.replicates is None else mine.replicates + theirs.replicates
            return Moments(
                count,
                scales,
                mine.totals + theirs.totals,
                mine.second + theirs.second + between,
                self.bootstrap,
                both,
            )

    def _in_units_of(self, scales: Floats) -> Moments:
        if np.array_equal(scales, self.scales):
            return self
        with np.errstate(invalid="ignore"):
            factor = np.where(scales == self.scales, 1.0, np.exp(self.scales - scales))
        replicates = None if self.replicates is None else self.replicates * factor
        second = self.second * np.outer(factor, factor)
        return Moments(self.count, scales, self.totals * factor, second, self.bootstrap, replicates)

    @cached_property
    def squares(self) -> Floats:
        """``[K]`` sums of squares, not centred."""
        return np.asarray(np.diagonal(self.second) + np.square(self.totals) / max(self.count, 1))
