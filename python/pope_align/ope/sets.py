"""The value of rewards of whole slates (coverage, distinct n-grams, any function) under another policy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pope_core.objective import Objective

from ..data.schema import Slate
from ..stats.intervals import Confidence
from ..stats.ratios import Ratios
from .diagnostics import diagnose
from .log import LoggedSlates
from .pope import labels
from .result import Estimate, finish
from .verdict import propensity_findings, weight_findings
from .weights import log_weights


def set_value(
    log: LoggedSlates,
    policy: str,
    reward: Callable[[Slate], float] | npt.ArrayLike,
    *,
    name: str,
    objective: Objective = Objective.evaluation(),  # noqa: B008 (frozen)
    confidence: Confidence = Confidence(),  # noqa: B008 (frozen)
) -> Estimate:
    """The expected reward of a slate that the policy would write: ``sum_q W_q f(Y_q) / sum_q W_q``.

    A reward that is not a sum over responses needs the product of their weights, whose effective sample size falls
    exponentially with the size of the slate. If it is too small, the verdict refuses; then only fresh samples of the
    policy help.

    Args:
        reward: ``[S]`` numbers, or a function of a `Slate` (the log must come from `LoggedSlates.from_slates`).
        name: of the reward, in the result.
        objective: its length_normalize.

    Raises:
        ValueError: a reward that is not finite, with its slate; a function although the log has no text.

    Source: docs/method.md, "Estimators", weighting "slate" with normalization "batch", for any function of the slate.
    """
    values = rewards_of(log, reward)
    whole = objective.length_normalize
    log_joint = log_weights(log, policy, "slate", length_normalize=whole)
    weights = np.exp(log_joint - log_joint.max())
    numerators = np.stack([weights * values, np.zeros_like(values)], axis=1)
    parts = Ratios(log.cluster_sums(numerators)[None], log.cluster_sums(weights)[None])
    diagnostics = diagnose(log, policy, weighting="slate", length_normalize=whole)
    return finish(
        log,
        policy,
        f"set:{name}",
        parts,
        diversity_weight=0.0,
        diagnostics=diagnostics,
        findings=[
            *propensity_findings(log, policy, length_normalize=whole),
            *weight_findings(
                diagnostics,
                self_normalized=True,
                clipped=False,
                length_normalize=whole,
                support_checked=policy in log.fresh,
            ),
        ],
        whole_slates=True,
        options={"reward": name, "length_normalize": whole},
        labels=labels(log, biased=whole, shrink=None, self_normalized=True),
        confidence=confidence,
    )


def rewards_of(log: LoggedSlates, reward: Callable[[Slate], float] | npt.ArrayLike) -> npt.NDArray[np.float64]:
    """``[S]`` the rewards, checked as in `set_value`."""
    if callable(reward):
        if log.slates is None:
            raise ValueError(
                "reward: a function of the slate needs its text, and this log was made from arrays; use "
                "LoggedSlates.from_slates or pass [S] numbers"
            )
        reward = [reward(slate) for slate in log.slates]
    values = np.asarray(reward, dtype=np.float64)
    if values.shape != (log.num_slates,):
        raise ValueError(f"reward: expected {log.num_slates} numbers, one per slate, got shape {list(values.shape)}")
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise ValueError(f"reward: slate {bad[0]}: expected a finite number, got {values[bad[0]]}")
    return values
