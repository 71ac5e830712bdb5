"""Placebo tests of gains (utilities permuted within slates) and within-slate rank correlations.

A policy that moves towards some responses of each slate shows some gain whatever the ratings are, and a policy that was
trained on shuffled ratings can gain as much as one that learned. Permuting utilities within slates removes everything
that can be learned, so a gain that permuted utilities also reach is not a gain.

For fixed weights and penalties every estimator here is linear in the utilities, with coefficients ("shares"):
`gain_shares` for a self-normalised weighted mean, the difference of two ``model_first(...).shares`` for a model-first
estimate. A gain with ``p_value >= 0.05`` is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .._arrays import Floats, Integers
from ..stats.intervals import Confidence, Quantity, quantities
from ..stats.ratios import Ratios
from .log import LoggedSlates
from .model_first import per_slate_weights

#: Size of a block of permuted utilities: 32 MiB of float64.
_BLOCK = 4 * 1024 * 1024

DRAWS = 1000


@dataclass(frozen=True)
class Placebo:
    """A gain compared with the gains of permuted utilities.

    Attributes:
        gain: with the logged utilities.
        mean, low, high: of the gains of permuted utilities; the middle 95%.
        p_value: ``(1 + number of draws with a gain at least this large) / (draws + 1)``.
        draws: number of permutations; 0: the normal distribution that they have over many slates.
    """

    gain: float
    mean: float
    low: float
    high: float
    p_value: float
    draws: int


def placebo(log: LoggedSlates, shares: Floats, *, draws: int = DRAWS, seed: int = 0) -> Placebo:
    """Compare the gain ``shares @ utility`` with gains of utilities permuted within slates.

    Args:
        shares: ``[R]`` coefficient of each utility in the gain.
        draws: permutations, at least 1.

    Raises:
        ValueError: shares of another shape, or all slates have one response, so that nothing can be permuted.

    Source: docs/evaluation.md, "Estimators".
    """
    return permutation_test(log.utility, log.slate_offsets, shares, draws=draws, seed=seed)


def permutation_test(
    utility: Floats, slate_offsets: Integers, shares: Floats, *, draws: int = DRAWS, seed: int = 0
) -> Placebo:
    """`placebo` on arrays.

    Args:
        utility, shares: ``[R]``.
        slate_offsets: ``[S + 1]``.
    """
    if shares.shape != utility.shape:
        raise ValueError(f"shares: expected [{utility.size}], got {list(shares.shape)}")
    if draws < 1:
        raise ValueError(f"draws: expected an integer >= 1, got {draws}")
    sizes = np.diff(slate_offsets)
    if sizes.max() == 1:
        raise ValueError(
            "log: expected slates of at least two responses, got one response per slate: nothing to permute"
        )
    gain = float(shares @ utility)
    random, gains = np.random.default_rng(seed), np.zeros(draws)
    for size in np.unique(sizes):
        rows = slate_offsets[:-1][sizes == size][:, None] + np.arange(size)  # [G, k]
        utilities, share = utility[rows], shares[rows]
        step = max(1, _BLOCK // rows.size)
        for start in range(0, draws, step):
            count = min(step, draws - start)
            order = random.random((count, *rows.shape)).argsort(-1)
            permuted = np.take_along_axis(np.broadcast_to(utilities, order.shape), order, axis=-1)
            gains[start : start + count] += np.einsum("bgk,gk->b", permuted, share)
    slack = 1e-12 * float(np.abs(shares) @ np.abs(utility))  # rounding of equal sums in another order
    p_value = (1 + int((gains >= gain - slack).sum())) / (draws + 1)
    low, high = np.quantile(gains, [0.025, 0.975])
    return Placebo(gain, float(gains.mean()), float(low), float(high), p_value, draws)


def gain_shares(log: LoggedSlates, log_weights: Floats, baseline: Floats | None = None) -> Floats:
    """``[R]`` shares of the utilities in the difference of two self-normalised weighted means.

    Args:
        log_weights: ``[R]`` of the policy, up to a constant.
        baseline: ``[R]`` of the other; None: the log's own mean.
    """
    weights = per_slate_weights(log, log_weights)
    other = per_slate_weights(log, np.zeros_like(log_weights) if baseline is None else baseline)
    return np.asarray(weights / weights.sum() - other / other.sum())


def rank_correlation(log: LoggedSlates, scores: Floats, confidence: Confidence | None = None) -> Quantity:
    """Mean over slates of Spearman's correlation between a policy's scores and the utilities, ties averaged.

    Slates in which either is constant are left out.

    Args:
        scores: ``[R]``, a policy's log-probabilities (length-normalised, say), or their change against another policy.
        confidence: of the interval, which is clustered; None: the default.

    Raises:
        ValueError: scores of another shape or not finite, or no slate with two values of both.
    """
    if scores.shape != (log.num_responses,) or not np.isfinite(scores).all():
        raise ValueError(f"scores: expected [{log.num_responses}] finite numbers, got {list(scores.shape)}")
    total, count = rank_sums(log, scores)
    if not count.any():
        raise ValueError("log: expected a slate with two different utilities and scores, got none")
    ratios = Ratios(log.cluster_sums(total)[None, :, None], log.cluster_sums(count)[None])
    return quantities(ratios, confidence or Confidence())[0]


def rank_sums(log: LoggedSlates, scores: Floats) -> tuple[Floats, Floats]:
    """``[S]`` Spearman's correlation within each slate, and 1; both are 0 where scores or utilities are constant."""
    total, count = np.zeros(log.num_slates), np.zeros(log.num_slates)
    for size in np.unique(log.sizes):
        slates = np.flatnonzero(log.sizes == size)
        rows = log.slate_offsets[slates][:, None] + np.arange(size)
        x, y = (_ranks(values[rows]) - (size - 1) / 2 for values in (scores, log.utility))
        scale = np.sqrt(np.square(x).sum(1) * np.square(y).sum(1))
        told = scale > 1e-9
        total[slates[told]] = (x * y).sum(1)[told] / scale[told]
        count[slates[told]] = 1.0
    return total, count


def _ranks(values: Floats) -> Floats:
    """``[G, k]`` ranks from 0, ties averaged."""
    below = (values[:, None, :] < values[:, :, None]).sum(2)
    equal = (values[:, None, :] == values[:, :, None]).sum(2)
    return np.asarray(below + (equal - 1) / 2)
