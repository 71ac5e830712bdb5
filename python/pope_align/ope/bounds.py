"""Theorem 4.1c: lower bounds of the value that decompose over responses and over slates."""

from __future__ import annotations

import numpy as np

from .._arrays import Floats
from .log import LoggedSlates
from .weights import log_weights


def slate_lower_bounds(log: LoggedSlates, policy: str, rewards: Floats, *, length_normalize: bool) -> Floats:
    """``[S]``: for every slate, a bound on ``sum_i w_i R_i`` that is linear in ``log w``.

    Equivalent, for one slate with ``p = R / R.sum()``: ``R.sum() * exp((p * log_w).sum())``; 0 if every reward is 0. By
    weighted AM-GM it is at most the sum.

    Args:
        rewards: ``[R]`` at least 0, e.g. ``log.utility``.

    Raises:
        ValueError: a negative reward, with its place.

    Source: docs/method.md, Theorem 4.1c, first half.
    """
    totals = log.slate_sums(_non_negative(log, rewards))
    log_w = log_weights(log, policy, "response", length_normalize=length_normalize)
    exponents = log.slate_sums(rewards * log_w) / np.where(totals > 0, totals, 1.0)
    return np.asarray(totals * np.exp(exponents))


def log_value_lower_bound(log: LoggedSlates, policy: str, rewards: Floats, *, length_normalize: bool) -> float:
    """``(1/S) sum_q (log W_q + log Rbar_q)``: by Jensen at most ``log((1/S) sum_q W_q Rbar_q)``, the joint estimate.

    ``Rbar_q`` is the slate's mean reward. -inf if a slate has no reward.

    Source: docs/method.md, Theorem 4.1c, second half.
    """
    means = log.slate_sums(_non_negative(log, rewards)) / log.sizes
    log_joint = log_weights(log, policy, "slate", length_normalize=length_normalize)
    with np.errstate(divide="ignore"):
        return float((log_joint + np.log(means)).mean())


def _non_negative(log: LoggedSlates, rewards: Floats) -> Floats:
    bad = np.flatnonzero(~(rewards >= 0))
    if rewards.shape != (log.num_responses,) or bad.size:
        got = f"{rewards[bad[0]]} at {log.place(int(bad[0]))}" if bad.size else f"shape {list(rewards.shape)}"
        raise ValueError(f"rewards: expected {log.num_responses} numbers >= 0, got {got}")
    return rewards
