"""Support: compares the weights of a policy's fresh responses with the largest weight of the log.

Statistics of logged weights cannot show what was never logged. A policy's fresh responses, scored under the logging
policy, can: a response whose weight is larger than every logged weight is of a kind that the log does not contain. The
share of such responses estimates the policy's probability outside the log's support; their utility is unknown within
the range of utilities.

Compare ``bias_bound`` with the standard error of the estimate and, above all, of a difference, whose error is far
smaller. Without fresh responses support is unchecked, and the verdict says so.

Source: docs/evaluation.md, "What is estimated".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from .._arrays import Floats, Integers
from ..stats.ratios import RatioEstimate
from .facts import LogFacts
from .features import check_owner
from .log import LoggedSlates

#: Tolerance in nats for equal weights that were summed in another order.
_ROUNDING = 1e-6

#: Normal quantile of the one-sided 95% limit.
_Z = 1.6448536269514722


@dataclass(frozen=True)
class Support:
    """How much of a policy is outside the log's support.

    Attributes:
        share: of the policy's fresh responses with a weight above the log's largest (slates have equal weight).
        limit: its upper 95% limit (Wilson, by cluster).
        largest: the log's largest log-weight, nats.
        bias_bound: ``share`` times the largest effect of a response outside the support: the range of the utilities, or
            what the estimator makes of it (`reaching`).
        bias_limit: ``limit`` times it.
        num_fresh: responses.
    """

    share: float
    limit: float
    largest: float
    bias_bound: float
    bias_limit: float
    num_fresh: int

    def reaching(self, effect: float) -> Support:
        """The same where a response outside the support changes the value by at most ``effect``.

        A self-normalised mean uses itself, V, for what it never met: at most ``max(V - low, high - V)`` for utilities
        from ``low`` to ``high``. A doubly robust one uses predictions.
        """
        return replace(self, bias_bound=self.share * effect, bias_limit=self.limit * effect)


def support(log: LoggedSlates, policy: str, fresh_log_weights: Floats, owner: Integers) -> Support:
    """The share of fresh responses of ``policy`` with a weight above every logged weight.

    Args:
        policy: one of ``log.policies``; totals of whole sequences are compared.
        fresh_log_weights: ``[N]`` log-probability of fresh responses under the policy minus that under the logging
            policy, totals in nats; +inf if the logging policy cannot write it.
        owner: ``[N]`` slate whose prompt each answers.

    Raises:
        ValueError: shapes that do not fit, a NaN.
    """
    target, logging = log.logprobs(policy, length_normalize=False)
    return support_of(log, target - logging, fresh_log_weights, owner)


def fresh_support(log: LoggedSlates, policy: str) -> Support | None:
    """`support` by the log's own fresh responses of the policy; None without any that the logging policy scored."""
    fresh = log.fresh.get(policy)
    if fresh is None or fresh.logging is None:
        return None
    return support(log, policy, fresh.target - fresh.logging, fresh.owner)


def support_of(log: LoggedSlates, logged_log_weights: Floats, fresh_log_weights: Floats, owner: Integers) -> Support:
    """The same for weights of any kind, such as `classifier_weights`.

    Args:
        logged_log_weights: ``[R]``.
        fresh_log_weights, owner: ``[N]``, as in `support`.
    """
    check_owner(log, owner, len(fresh_log_weights))
    bad = np.flatnonzero(np.isnan(fresh_log_weights))
    if bad.size:
        raise ValueError(f"fresh_log_weights[{bad[0]}]: expected a number, got NaN")
    largest = float(logged_log_weights.max())
    beyond = (fresh_log_weights > largest + _ROUNDING).astype(np.float64)
    counts = np.bincount(owner, minlength=log.num_slates)
    by_slate = np.bincount(owner, weights=beyond, minlength=log.num_slates) / counts
    share = float(by_slate.mean())
    low, high = log.utility_range
    limit = _wilson(share, _independent(log, by_slate, share, len(beyond)))
    return Support(share, limit, largest, share * (high - low), limit * (high - low), len(beyond))


def reach(log: LogFacts, least: float, most: float) -> float:
    """Largest difference of a utility from what an estimator uses in its place, a number from ``least`` to ``most``."""
    low, high = log.utility_range
    return max(high - least, most - low)


def reach_of_mean(log: LogFacts, ratios: RatioEstimate) -> float | None:
    """`reach` of a self-normalised mean (the first column), which counts what it never met as the mean of the others;
    None where it is not a number.
    """
    with np.errstate(all="ignore"):
        used = float(ratios.values()[0])
    return reach(log, used, used) if math.isfinite(used) else None


def _independent(log: LoggedSlates, by_slate: Floats, share: float, fresh: int) -> float:
    """The number of independent responses with the same uncertainty of the share as the clusters; at most ``fresh``."""
    sums, counts = log.cluster_sums(by_slate), log.cluster_sums(np.ones(log.num_slates))
    clusters = counts.size
    variance = float(np.square(sums - share * counts).sum()) / log.num_slates**2 * clusters / max(clusters - 1, 1)
    return min(float(fresh), share * (1 - share) / variance) if variance > 0 else float(clusters)


def _wilson(share: float, count: float) -> float:
    centre = share + _Z**2 / (2 * count)
    half = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return (centre + half) / (1 + _Z**2 / count)
