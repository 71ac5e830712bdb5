"""Balance: weighted logged responses must resemble the policy's own fresh ones; wrong propensities show here.

True importance weights turn the log into responses of the policy, so for every function f the weighted mean of f over
the log and its mean over fresh responses of the policy estimate the same number. Here f is a response's rank by
log-probability under the logging policy, and its rank by weight: both are bounded. If the log was sampled at another
temperature than its propensities were computed at, or with another truncation, template or length limit, the mean
weight can be 1 all the same, but likely responses are too frequent or too rare.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .._arrays import Floats, Integers
from .features import fresh_mean
from .log import LoggedSlates
from .model_first import per_slate_weights, slate_term, term, value_and_error
from .rules import RULES
from .verdict import Finding, find


@dataclass(frozen=True)
class Balance:
    """How far weighted logged responses are from fresh ones, in mean rank (0 to 1) of all of both.

    Attributes:
        by: what is ranked.
        gap: mean rank of the weighted logged responses minus that of the fresh ones.
        standard_error: of the gap, by cluster.
    """

    by: str
    gap: float
    standard_error: float

    @property
    def z(self) -> float:
        """The gap in standard errors."""
        return self.gap / self.standard_error if self.standard_error > 0 else float("nan")


def balance(log: LoggedSlates, policy: str) -> tuple[Balance, ...]:
    """The gaps by log-probability under the logging policy and by weight; none without scored fresh responses.

    Source: docs/evaluation.md, "Verdicts".
    """
    fresh = log.fresh.get(policy)
    if fresh is None or fresh.logging is None:
        return ()
    target, logging = log.logprobs(policy, length_normalize=False)
    ratio = target - logging
    weights = per_slate_weights(log, ratio)
    with np.errstate(invalid="ignore"):
        pairs = {
            "log-probability under the logging policy": (logging, fresh.logging),
            "weight": (ratio, fresh.target - fresh.logging),
        }
    return tuple(_gap(log, by, weights, *_ranks(*both), fresh.owner) for by, both in pairs.items())


def balance_findings(log: LoggedSlates, policy: str, sequence_ess: float) -> Iterator[Finding]:
    """The largest gap, if the effective sample size of whole sequences is enough to know its standard error."""
    if RULES["ess"].grade(sequence_ess) is not None:
        return
    for each in sorted(balance(log, policy), key=lambda each: -abs(np.nan_to_num(each.z)))[:1]:
        reason = (
            f"weighted logged responses and the policy's fresh ones differ in {each.by} (mean rank {each.gap:+.3f} "
            f"+-{each.standard_error:.3f}): propensities of another temperature, truncation, template or length limit "
            "than the log was sampled with"
        )
        yield from find("balance", reason, abs(each.z))


def _ranks(logged: Floats, fresh: Floats) -> tuple[Floats, Floats]:
    """Ranks from 0 to 1 among all of both, ties averaged."""
    _, place, counts = np.unique(np.concatenate([logged, fresh]), return_inverse=True, return_counts=True)
    ranks = (counts.cumsum() - (counts - 1) / 2 - 0.5) / counts.sum()
    return ranks[place[: logged.size]], ranks[place[logged.size :]]


def _gap(log: LoggedSlates, by: str, weights: Floats, logged: Floats, fresh: Floats, owner: Integers) -> Balance:
    own = slate_term(log, fresh_mean(log, owner, fresh))
    return Balance(by, *value_and_error(term(log, weights * logged, weights).minus(own)))
