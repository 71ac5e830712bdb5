"""Diagnostics of the raw weights: overlap, tails, wrong propensities, length."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pope_core.objective import Weighting, weighs_slates

from .._arrays import Floats
from .log import LoggedSlates
from .weights import Shrink, log_weights

#: With fewer weights no tail index is computed.
MIN_TAIL_WEIGHTS = 25


#: Two passes of one model give a response totals that differ by about this many nats in float32.
ROUNDING = 1e-3


@dataclass(frozen=True)
class Diagnostics:
    """Diagnostics of the raw weights (before clipping or shrinking), per response or slate as the estimator uses them.

    NaN means unknown, neither healthy nor unhealthy.
    """

    weighting: Weighting
    num_weights: int
    ess: float  # (sum w)^2 / sum w^2 of the weights the estimator uses
    response_ess: float
    slate_ess: float  # of the products W over slates
    cluster_ess: float  # of the sums of the used weights over clusters
    max_share: float  # of the largest weight in the sum of all
    top_percent_share: float  # of the largest 1%, at least one
    pareto_k: float  # tail index; should be below `pareto_k_threshold`
    mean_weight: float
    mean_weight_z: float  # (mean w - 1) / clustered standard error; NaN unless the propensities are totals
    log_weight_max: float
    log_weight_max_place: str
    length_correlation: float  # of log w and tokens; NaN without token counts
    target_coverage: float  # share of logged responses that are typical of the target
    clip_fraction: float  # share of weights that a clip or switch changed; NaN if not applicable
    sequence_ess: float  # response ESS of the true ratios of whole sequences

    @property
    def ess_fraction(self) -> float:
        return self.ess / self.num_weights

    @property
    def pareto_k_threshold(self) -> float:
        return pareto_k_threshold(self.num_weights)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ess_fraction": self.ess_fraction, "pareto_k_threshold": self.pareto_k_threshold}


def diagnose(
    log: LoggedSlates,
    policy: str,
    *,
    weighting: Weighting,
    length_normalize: bool,
    shrink: Shrink | None = None,
) -> Diagnostics:
    """Diagnostics of one policy's raw weights on the log.

    Source: docs/evaluation.md, "Verdicts"; Kong (1992) for the effective sample size; Vehtari et al. (2024) for the
    tail index.
    """
    target, logging = log.logprobs(policy, length_normalize=length_normalize)
    each = target - logging  # [R]
    log_w = log_weights(log, policy, weighting, length_normalize=length_normalize)
    shifted = np.exp(log_w - log_w.max())
    ordered = np.partition(shifted, -max(1, shifted.size // 100))
    total = shifted.sum()
    by_slate = shifted if weighs_slates(weighting) else log.slate_sums(shifted)
    tokens = log.tokens(policy)
    largest = int(log_w.argmax())
    return Diagnostics(
        weighting=weighting,
        num_weights=log_w.size,
        ess=effective_sample_size(log_w),
        response_ess=effective_sample_size(each),
        slate_ess=effective_sample_size(log.slate_sums(each)),
        cluster_ess=cluster_ess(log, by_slate),
        max_share=float(1 / total),
        top_percent_share=float(ordered[-max(1, shifted.size // 100) :].sum() / total),
        pareto_k=pareto_k(log_w),
        mean_weight=_exp(log_w.max()) * float(shifted.mean()),
        mean_weight_z=math.nan if length_normalize else _mean_weight_z(log, log_w, by_slate, weighting),
        log_weight_max=float(log_w[largest]),
        log_weight_max_place=f"slate {largest}" if weighs_slates(weighting) else log.place(largest),
        length_correlation=math.nan if tokens is None else _correlation(each, tokens.astype(np.float64)),
        target_coverage=_target_coverage(log, policy, each),
        clip_fraction=0.0 if shrink is None else shrink.touched(log_w),
        sequence_ess=effective_sample_size(np.subtract(*log.logprobs(policy, length_normalize=False))),
    )


def cluster_ess(log: LoggedSlates, weights: Floats) -> float:
    """``(sum_c w_c)^2 / sum_c w_c^2`` with ``w_c`` the sum over a cluster of its slates' weights ``[S]``."""
    by_cluster = log.cluster_sums(weights)
    return float(by_cluster.sum() ** 2 / np.square(by_cluster).sum())


def effective_sample_size(log_w: Floats) -> float:
    """``(sum w)^2 / sum w^2``, between 1 and the number of weights; NaN if every weight is 0."""
    if log_w.max() == -np.inf:
        return math.nan
    w = np.exp(log_w - log_w.max())
    return float(w.sum() ** 2 / (w @ w))


def pareto_k(log_w: Floats) -> float:
    """Tail index of the weights: the shape of a generalised Pareto distribution fitted to the largest of them.

    Zhang and Stephens' (2009) estimator on the largest ``min(n / 5, 3 sqrt n)`` weights, shrunk slightly towards 1/2,
    as in Vehtari et al. (2024). Moments of order ``1 / k`` and above do not exist. NaN for fewer than 25 weights, whose
    tail has fewer than the five points that a fit needs. Infinite if one to four weights exceed the rest, minus
    infinity if the largest are all equal.
    """
    return pareto_k_of(log_w, log_w.size)


def pareto_k_of(largest: Floats, count: int) -> float:
    """`pareto_k` of ``count`` log-weights, of which the largest are given: `tail_size` of them, or more."""
    if count < MIN_TAIL_WEIGHTS or largest.max() == -np.inf:
        return math.nan
    first = largest.size - tail_size(count)
    if first < 0:
        raise ValueError(f"largest: expected {tail_size(count)} of {count} weights, got {largest.size}")
    largest = np.sort(np.partition(largest, first)[first:]) - largest.max()
    cutoff = max(largest[0], math.log(np.finfo(np.float64).tiny))
    excess = np.exp(largest[largest > cutoff]) - math.exp(cutoff)
    if excess.size == 0:  # the largest weights are all equal: bounded, and no tail
        return -math.inf
    if excess.size <= 4:
        return math.inf
    return _pareto_shape(excess)


def tail_size(count: int) -> int:
    """How many of ``count`` weights the tail index is computed from: the tail, and the one that it starts above."""
    return int(min(count / 5, 3 * math.sqrt(count))) + 1


def _pareto_shape(excess: Floats) -> float:
    """Zhang and Stephens (2009): a posterior mean over a grid of ``theta = -k / sigma``; ``excess`` is ascending."""
    count = excess.size
    grid = 30 + int(math.sqrt(count))
    quartile = excess[int(count / 4 + 0.5) - 1]
    theta = (1 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))) / (3 * quartile) + 1 / excess[-1]
    shapes = np.log1p(-theta[:, None] * excess).mean(axis=1)  # [grid]
    flat = shapes == 0  # the exponential distribution, the limit for theta -> 0
    rate = np.where(flat, 1 / excess.mean(), -theta / np.where(flat, 1.0, shapes))
    profile = count * (np.log(rate) - shapes - 1)
    posterior = np.exp(profile - profile.max())
    posterior /= posterior.sum()
    keep = posterior >= 10 * np.finfo(np.float64).eps
    mean = float((posterior[keep] / posterior[keep].sum()) @ theta[keep])
    shape = float(np.log1p(-mean * excess).mean())
    return (count * shape + 10 * 0.5) / (count + 10)  # ten pseudo-observations at 1/2


def pareto_k_threshold(count: int) -> float:
    """``min(1 - 1 / log10 n, 0.7)``: the largest acceptable tail index of ``n`` weights."""
    return min(1 - 1 / math.log10(count), 0.7) if count > 1 else -math.inf


def _exp(value: float) -> float:
    return math.exp(value) if value < 709 else math.inf


def _mean_weight_z(log: LoggedSlates, log_w: Floats, shifted: Floats, weighting: Weighting) -> float:
    """How many clustered standard errors the mean weight is from 1, its expectation under true propensities.

    The standard error scales with the weights, so a mean far below 1 is detected like one far above. It is at least
    `ROUNDING` times the mean, because a policy on its own log has weights of 1 up to rounding.
    """
    counts = log.cluster_sums(np.ones(log.num_slates) if weighs_slates(weighting) else log.sizes.astype(np.float64))
    sums = log.cluster_sums(shifted)
    mean = sums.sum() / counts.sum()
    clusters = counts.size
    error = math.sqrt(float(np.square(sums - mean * counts).sum()) * clusters / (clusters - 1)) / counts.sum()
    return distance_from_one(float(mean), error, float(log_w.max()))


def distance_from_one(mean: float, error: float, scale: float) -> float:
    """Of a mean and its standard error in units of ``exp(scale)``, in these standard errors; NaN if weights are 0."""
    if not mean > 0:
        return math.nan
    one = math.exp(-scale) if scale > -709 else math.inf
    return float((mean - one) / math.hypot(error, ROUNDING * mean))


def _correlation(x: Floats, y: Floats) -> float:
    fine = np.isfinite(x)
    x, y = x[fine], y[fine]
    if x.size == 0:
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale > 0 else math.nan


def _target_coverage(log: LoggedSlates, policy: str, each: Floats) -> float:
    """Share of logged responses whose surprise under the target is at most the target's own 90% quantile.

    The quantile is estimated with self-normalised weights, so the share is 0.9 if target and logging policy are equal,
    and falls to 0 as the log lacks responses like the target's. Surprise is per token if tokens are known.
    """
    tokens = log.tokens(policy)
    surprise = -log.logprobs(policy, length_normalize=tokens is not None)[0]
    order = np.argsort(surprise, kind="stable")
    cumulative = np.cumsum(np.exp(each - each.max())[order])
    at = int(np.searchsorted(cumulative, 0.9 * cumulative[-1]))
    quantile = surprise[order[min(at, order.size - 1)]]
    return float((surprise <= quantile).mean())
