"""Intervals for sums of ratios: t, bootstraps over clusters, and bounds that are valid at any sample size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from .._arrays import Floats
from .._extras import require
from .empirical_likelihood import empirical_likelihood_interval
from .ratios import RatioEstimate, Ratios

IntervalMethod = Literal["t", "bootstrap", "bayesian", "empirical_likelihood", "anytime", "hoeffding", "bernstein"]


@dataclass(frozen=True)
class Confidence:
    """The settings of an interval.

    Attributes:
        method: "t": delta-method standard error and the t quantile of C - 1 degrees; "bootstrap": percentiles over
            resampled clusters; "bayesian": percentiles under Dirichlet weights of the clusters;
            "empirical_likelihood": for few clusters with skewed weights (`empirical_likelihood_interval`); "anytime":
            an asymptotic confidence sequence, for a log that grows and is evaluated again and again
            (`anytime_interval`); "hoeffding" and "bernstein": bounds from declared ranges, for unnormalised estimators
            with a clip.
        level: coverage, two-sided.
        draws: number of bootstrap draws.
        seed: of the bootstrap; equal seeds resample the same clusters for every policy and estimator.
        narrowest_at: number of clusters at which "anytime" is narrowest; choose it before the first evaluation.
        diversity_range: declared least and greatest diversity reward, for the two bounds.
    """

    method: IntervalMethod = "t"
    level: float = 0.95
    draws: int = 1000
    seed: int = 0
    narrowest_at: int = 200
    diversity_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.method not in get_args(IntervalMethod):
            raise ValueError(f"method: expected one of {', '.join(get_args(IntervalMethod))}, got {self.method!r}")
        if not 0 < self.level < 1:
            raise ValueError(f"level: expected a number in (0, 1), got {self.level!r}")
        if self.draws < 2:
            raise ValueError(f"draws: expected an integer >= 2, got {self.draws!r}")
        if self.narrowest_at < 1:
            raise ValueError(f"narrowest_at: expected an integer >= 1, got {self.narrowest_at!r}")


@dataclass(frozen=True)
class Quantity:
    """A number, its standard error, and its interval."""

    value: float
    standard_error: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def quantities(ratios: RatioEstimate, confidence: Confidence, row_ranges: Floats | None = None) -> list[Quantity]:
    """Every column of ``ratios`` with its standard error (delta method, clustered) and interval.

    Args:
        row_ranges: ``[P, 2]`` least and greatest contribution of one slate, for "hoeffding" and "bernstein".
    """
    values = ratios.values()
    errors = np.sqrt(np.diagonal(ratios.covariance()))
    if confidence.method == "t":
        low, high = t_interval(values, errors, ratios.num_clusters - 1, confidence.level)
    elif confidence.method == "anytime":
        low, high = anytime_interval(values, errors, ratios.num_clusters, confidence.level, confidence.narrowest_at)
    elif confidence.method == "bootstrap" or confidence.method == "bayesian":
        draws = ratios.draws(confidence.method, confidence.draws, confidence.seed)
        tail = (1 - confidence.level) / 2
        low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    elif not isinstance(ratios, Ratios):
        raise ValueError(f"method: {confidence.method!r} needs every cluster, and this estimate has only their sums")
    elif confidence.method == "empirical_likelihood":
        low, high = empirical_likelihood_interval(ratios, confidence.level)
    else:
        if row_ranges is None:
            raise ValueError(
                f"method: {confidence.method!r} needs contributions of bounded size: an unnormalised estimator "
                "(normalization='none') with a clip"
            )
        bound = hoeffding_interval if confidence.method == "hoeffding" else bernstein_interval
        low, high = bound(ratios, row_ranges, confidence.level)
    return [Quantity(*map(float, each)) for each in zip(values, errors, low, high, strict=True)]


def t_interval(values: Floats, errors: Floats, degrees: int, level: float) -> tuple[Floats, Floats]:
    """Two-sided: ``value -+ t_{degrees, (1 + level) / 2} * error``."""
    special = require("scipy.special", extra="train", purpose="for t intervals")
    half = special.stdtrit(degrees, (1 + level) / 2) * errors
    return values - half, values + half


def anytime_interval(
    values: Floats, errors: Floats, clusters: int, level: float, narrowest_at: int
) -> tuple[Floats, Floats]:
    """Asymptotic confidence sequence: over all evaluations of a growing log, the chance that any interval misses is
    about ``1 - level``.

    With ``t`` clusters, standard error ``e`` and ``d = 1 - level``: ``value -+ e sqrt(2 (t r^2 + 1) / (t r^2) *
    ln(sqrt(t r^2 + 1) / d))``, where ``r^2 = (-2 ln d + ln(1 - 2 ln d)) / narrowest_at``. It is wider than "t" at every
    size. It needs clusters that arrive independently, and enough of them at the first evaluation (50) for the standard
    error to mean something.

    Source: Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory and asymptotic
    confidence sequences" (2024), Theorem 2.2 and Section 2.3.
    """
    miss = 1 - level
    scaled = clusters * (-2 * math.log(miss) + math.log(1 - 2 * math.log(miss))) / narrowest_at
    half = math.sqrt(2 * (scaled + 1) / scaled * math.log(math.sqrt(scaled + 1) / miss)) * errors
    return values - half, values + half


def hoeffding_interval(ratios: Ratios, row_ranges: Floats, level: float) -> tuple[Floats, Floats]:
    """Hoeffding (1963), for a mean of independent clusters of ``n_c`` slates with contributions in ``[a, b]``.

    ``value -+ (b - a) sqrt(ln(2 / (1 - level)) / 2 * sum_c (n_c / n)^2)``; with equal clusters the sum is ``1 / C``.
    """
    shares = _mean_shares(ratios)
    half = (row_ranges[:, 1] - row_ranges[:, 0]) * math.sqrt(math.log(2 / (1 - level)) / 2 * float(shares @ shares))
    return ratios.values() - half, ratios.values() + half


def bernstein_interval(ratios: Ratios, row_ranges: Floats, level: float) -> tuple[Floats, Floats]:
    """Maurer and Pontil (2009), both sides, d = 1 - level.

    ``value -+ [ sqrt(2 s^2 ln(4/d) / C) + 7 (b - a) ln(4/d) / (3 (C - 1)) ]``

    Raises:
        ValueError: clusters of unequal size, whose means are not identically distributed.
    """
    shares = _mean_shares(ratios)
    count = shares.size
    if not np.allclose(shares, 1 / count, rtol=1e-12):
        raise ValueError("method: 'bernstein' needs clusters of equal size; use 'hoeffding' or cluster by slate")
    means = ratios.numerators[0] / ratios.denominators[0][:, None]
    logarithm = math.log(4 / (1 - level))
    half = np.sqrt(2 * means.var(axis=0, ddof=1) * logarithm / count)
    half += 7 * (row_ranges[:, 1] - row_ranges[:, 0]) * logarithm / (3 * (count - 1))
    return ratios.values() - half, ratios.values() + half


def _mean_shares(ratios: Ratios) -> Floats:
    """``[C]`` the share of each cluster in a plain mean."""
    return np.asarray(ratios.denominators[0] / ratios.denominators[0].sum())


@dataclass(frozen=True)
class JointRegion:
    """The confidence ellipse of (V_CU, V_Div): ``(x - centre)^T covariance^-1 (x - centre) <= radius2``."""

    centre: tuple[float, float]
    covariance: tuple[tuple[float, float], tuple[float, float]]
    radius2: float
    level: float

    @classmethod
    def of(cls, ratios: RatioEstimate, level: float) -> JointRegion:
        """Hotelling's T^2 with C - 1 degrees, from the first two columns."""
        special = require("scipy.special", extra="train", purpose="for joint intervals")
        degrees = ratios.num_clusters - 1
        quantile = special.fdtri(2, degrees - 1, level) if degrees > 1 else math.inf
        radius2 = 2 * degrees / (degrees - 1) * quantile if degrees > 1 else math.inf
        (x, y), covariance = ratios.values()[:2], ratios.covariance()[:2, :2]
        rows = tuple((float(a), float(b)) for a, b in covariance)
        return cls((float(x), float(y)), (rows[0], rows[1]), float(radius2), level)
