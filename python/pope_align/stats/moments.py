"""`Moments`: the count, sums and centred second moments of rows of numbers, which can be merged in any order."""

from __future__ import annotations

import math
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

    Second moments are kept as their root, a triangular matrix: the variance of a difference is then as exact as if it
    were computed from the rows, and never below 0, however much larger the variances of its two terms are.

    Attributes:
        count: N.
        scales: ``[K]`` logarithms of the units.
        totals: ``[K]`` sums.
        root: ``[<= K, K]``, ``root^T root = sum_n (x_n - mean)(x_n - mean)^T``; 0 in columns that are not finite.
        finite: ``[K]`` whether all numbers of a column are.
        bootstrap: the resampling whose sums are in ``replicates``; None: none.
        replicates: ``[draws, K]`` sums over the rows of every resampled log.
    """

    count: int
    scales: Floats
    totals: Floats
    root: Floats
    finite: npt.NDArray[np.bool_]
    bootstrap: KeyedBootstrap | None = None
    replicates: Floats | None = None

    @classmethod
    def nothing(cls, columns: int, bootstrap: KeyedBootstrap | None = None) -> Moments:
        """Of no rows."""
        replicates = None if bootstrap is None else np.zeros((bootstrap.draws, columns))
        finite = np.ones(columns, dtype=bool)
        return cls(
            0, np.full(columns, -np.inf), np.zeros(columns), np.zeros((0, columns)), finite, bootstrap, replicates
        )

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
        finite = np.isfinite(totals)
        centred = np.where(finite[:, None], rows, 0.0)
        centred -= np.where(finite, totals / rows.shape[1], 0.0)[:, None]
        replicates = None
        if bootstrap is not None:
            assert keys is not None
            replicates = bootstrap.sums(rows, keys)
        return cls(rows.shape[1], scales, totals, _root(centred.T), finite, bootstrap, replicates)

    def merge(self, other: Moments) -> Moments:
        """Of the rows of both (Chan, Golub and LeVeque, 1979; roots are joined as in a tall-skinny QR)."""
        if self.count == 0 or other.count == 0:
            return other if self.count == 0 else self
        if self.bootstrap != other.bootstrap or self.totals.shape != other.totals.shape:
            raise ValueError("other: expected moments of the same columns and resampling")
        scales = np.maximum(self.scales, other.scales)
        mine, theirs = self._in_units_of(scales), other._in_units_of(scales)
        count = mine.count + theirs.count
        finite = mine.finite & theirs.finite
        with np.errstate(invalid="ignore"):
            apart = (theirs.totals / theirs.count - mine.totals / mine.count) * math.sqrt(
                mine.count / count * theirs.count
            )
            roots = np.where(finite, np.concatenate([mine.root, theirs.root, apart[None]]), 0.0)
            return Moments(
                count,
                scales,
                mine.totals + theirs.totals,
                _root(roots),
                finite,
                self.bootstrap,
                None if mine.replicates is None or theirs.replicates is None else mine.replicates + theirs.replicates,
            )

    def _in_units_of(self, scales: Floats) -> Moments:
        if np.array_equal(scales, self.scales):
            return self
        with np.errstate(invalid="ignore"):
            factor = np.where(scales == self.scales, 1.0, np.exp(self.scales - scales))
        replicates = None if self.replicates is None else self.replicates * factor
        root = self.root * factor
        return Moments(self.count, scales, self.totals * factor, root, self.finite, self.bootstrap, replicates)

    @cached_property
    def squares(self) -> Floats:
        """``[K]`` sums of squares, not centred."""
        centred = np.where(self.finite, np.square(self.root).sum(0), np.nan)
        return np.asarray(centred + np.square(self.totals) / max(self.count, 1))

    def covariance(self, linear: Floats) -> Floats:
        """``[P, P]`` centred second moments of linear combinations ``[P, K]`` of the columns."""
        used = linear.any(0)
        roots = np.where(self.finite[used], self.root[:, used], np.nan) @ linear[:, used].T
        return np.asarray(roots.T @ roots)


def _root(rows: Floats) -> Floats:
    """``[<= K, K]`` of ``[N, K]`` rows: triangular, with the same sums of squares and products."""
    triangle: Floats = np.asarray(np.linalg.qr(rows, mode="r"))
    return triangle
