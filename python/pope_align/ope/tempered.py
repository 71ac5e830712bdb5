"""Tempers importance weights to a given effective sample size: an index of direction for long responses.

The spread of sequence weights grows with length until one response has all the weight. Dividing log-weights by the
number of tokens helps, but shrinks a true difference to almost nothing. The power that keeps an effective sample of a
quarter of the log shrinks it no more than necessary.

Log-weights of `tempered` can be used wherever raw ones can. Estimates from them are biased towards the log's mean and
belong in the table of indices, with the effective sample size of the raw weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .._arrays import Floats
from .diagnostics import effective_sample_size

#: The effective sample size to keep, as a share of the responses.
ESS_SHARE = 0.25

#: Bisection steps for the power, to a relative error below 1e-12.
_STEPS = 40


@dataclass(frozen=True, eq=False)
class Tempered:
    """``power * log w``, and its effective sample size.

    Attributes:
        log_weights: ``[R]`` nats.
        power: in [0, 1]; 1 if the raw weights already suffice.
        ess: effective sample size of the tempered weights.
        raw_ess: of the raw weights, to be shown as well.
    """

    log_weights: Floats
    power: float
    ess: float
    raw_ess: float


def tempered(log_weights: Floats, share: float = ESS_SHARE) -> Tempered:
    """Temper weights so that their effective sample size is at least ``share`` of their number.

    The largest power in [0, 1] with ``ess(power * log w) >= share * R``. The effective sample size falls with the power
    (``log ess(b) = 2 K(b) - K(2 b)`` with the convex ``K(b) = log sum_i w_i^b``), so there is one such power.

    Args:
        log_weights: ``[R]`` raw, of whole sequences; -inf for weights of 0, which stay 0 at every power above 0.
        share: in (0, 1].

    Raises:
        ValueError: a share out of range; log-weights that are NaN or +inf, or all -inf.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share: expected a number in (0, 1], got {share!r}")
    bad = np.flatnonzero(np.isnan(log_weights) | (log_weights == np.inf))
    if bad.size:
        raise ValueError(f"log_weights[{bad[0]}]: expected a number below infinity, got {log_weights[bad[0]]}")
    if not np.isfinite(log_weights).any():
        raise ValueError("log_weights: expected at least one finite number, got none: every weight is 0")
    wanted, raw = share * log_weights.size, effective_sample_size(log_weights)
    if raw >= wanted:
        return Tempered(log_weights, 1.0, raw, raw)
    power = largest_power(np.zeros_like(log_weights), log_weights, wanted)
    result = _times(power, log_weights)
    return Tempered(result, power, effective_sample_size(result), raw)


def largest_power(start: Floats, direction: Floats, ess: float, share: float = 1.0) -> float:
    """A power in [0, 1] at which ``start + power * direction`` are even enough: 1 if they are there, else the one that
    bisection finds at an end of their range, 0 if none.

    Args:
        start, direction: ``[R]`` nats; the direction may be -inf.
        ess: effective sample size that they have at least.
        share: of the total that the largest has at most.
    """

    def enough(power: float) -> bool:
        at = start + _times(power, direction)
        return effective_sample_size(at) >= ess and (share >= 1 or largest_share(at) <= share)

    if enough(1.0):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if enough(middle) else (low, middle)
    return low


def largest_share(log_weights: Floats) -> float:
    """What the largest weight has of the total."""
    return float(1 / np.exp(log_weights - log_weights.max()).sum())


def _times(power: float, log_weights: Floats) -> Floats:
    """``w^0`` is 1 also if ``w`` is 0: the unweighted log."""
    return power * log_weights if power > 0 else np.zeros_like(log_weights)
